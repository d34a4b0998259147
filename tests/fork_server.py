"""Imports eva once and forks the commands that `forked.py` asks for.

Run: python fork_server.py PID SOCKET SOCKET, where PID is the process with which it ends, and the
others are numbers of listening sockets.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked

_READ_NOTHING = (
    "torch._dynamo",
    "torchvision",
    "cv2",
    "jinja2",
    "matplotlib.pyplot",
    "onnxruntime",
    "pandas",
    "pyarrow.parquet",
    "scipy.signal",
    "scipy.stats",
    "skimage.filters",
    "sklearn.linear_model",
)
"""What commands import that reads nothing of the Hub's variables."""

_READ_THE_HUBS = (
    "eva.__main__",
    "g2l_plugin.cli",
    "eva.vision",
    "g2l_plugin.distil",
    "g2l_plugin.publishing.callback",
    "g2l_plugin.slides.data_module",
    "g2l_plugin.evaluation.embedding_metrics",
    "g2l_plugin.metrics.few_shot",
)
"""What most commands import, before or after they have read their config, that does."""


def command(name: str) -> str:
    """Path of a command: that which is forked, whose server is started, or else the real one."""
    if forked.FOLDER not in os.environ:
        return forked.real(name)
    folder = Path(os.environ[forked.FOLDER])
    _ensure_running(folder)
    return str(folder / name)


def _ensure_running(folder: Path) -> None:
    """Starts the server of this session, once, with the environment of the tests and offline."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(folder / "started", os.O_CREAT | os.O_EXCL))
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        listeners = [socket.socket(socket.AF_UNIX) for _ in forked.SOCKETS]
        for name, listener in zip(forked.SOCKETS, listeners, strict=True):
            listener.bind(str(folder / name))
            listener.listen(64)
        numbers = [listener.fileno() for listener in listeners]
        # A pipe that nobody reads: streams on a file could be moved in, as those of a test cannot.
        unread, output = os.pipe()
        subprocess.Popen(
            [sys.executable, __file__, (folder / "owner").read_text(), *map(str, numbers)],
            env=environment,
            pass_fds=[*numbers, unread],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        for number in (unread, output):
            os.close(number)
        for listener in listeners:
            listener.close()
        partial = folder / "environment.json.part"
        partial.write_text(json.dumps(forked.read_at_import(environment)))
        partial.rename(folder / "environment.json")
    end = time.monotonic() + 30
    while not (folder / "environment.json").exists() and time.monotonic() < end:
        time.sleep(0.01)  # another worker of pytest is about to start it


def main() -> None:
    """Serves commands with any of the Hub's variables, and in a fork those with the tests'."""
    owner, *numbers = map(int, sys.argv[1:])
    any_hub, our_hub = (socket.socket(fileno=number) for number in numbers)
    for name in _READ_NOTHING:
        importlib.import_module(name)
    assert not {"huggingface_hub", "timm", "transformers"} & sys.modules.keys()
    if os.fork():
        _serve(any_hub, owner)
    else:
        for name in _READ_THE_HUBS:
            importlib.import_module(name)
        _serve(our_hub, owner)


def _serve(listener: socket.socket, owner: int) -> None:
    gc.collect()
    gc.freeze()  # python/cpython#91351, as in g2l_plugin.parallel
    listener.settimeout(1)
    while _is_alive(owner):
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _handle(connection)
            connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _handle(connection: socket.socket) -> None:
    """Runs a command in a further fork, says which process it is and how it ended; ends with it."""
    connection.settimeout(None)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    process = os.fork()
    if process == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        _run(**request)
    for stream in streams:
        os.close(stream)
    connection.sendall(b"%d\n" % process)
    end = os.pidfd_open(process)
    if end not in select.select([end, connection], [], [])[0]:
        os.kill(process, signal.SIGKILL)  # whoever asked for it is gone
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def _run(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Does what Python does with a file, from its start to its end."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    name, *sys.argv = command
    if name == "python":
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
    else:
        sys.argv.insert(0, forked.real(name))
        sys.path[0] = str(Path(sys.argv[0]).parent)
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
