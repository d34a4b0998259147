"""Commands of eva and g2l, and scripts, in processes forked from one that has imported eva.

The imports take 16 of the 18 seconds of a command that ends in an error. Everything else is as in a
process of its own: arguments, environment, folder, output, status. What libraries read from the
environment as they are imported is that of the tests, offline; this package reads only whether it
is switched off.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

_MODULES = {"eva": "eva.__main__", "g2l": "g2l_plugin.cli"}
"""What has the function `main` of each command."""

_IMPORTED = (
    *_MODULES.values(),
    "eva.vision",
    "g2l_plugin.distil",
    "g2l_plugin.publishing.callback",
    "g2l_plugin.slides.data_module",
    "g2l_plugin.evaluation.embedding_metrics",
    "g2l_plugin.metrics.few_shot",
)
"""What most commands import, before or after they have read their config."""

_READ_AT_IMPORT = ("HF_", "PYTHON", "OMP_")
"""How variables begin that libraries read as they are imported."""


def _read_at_import(environment):
    return {key: text for key, text in environment.items() if key.startswith(_READ_AT_IMPORT)}


_IMPORTED_WITH = _read_at_import(os.environ | {"HF_HUB_OFFLINE": "1"})
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(_IMPORTED))


def can_run(environment: dict[str, str]) -> bool:
    """Whether an environment has the variables with which eva is imported here."""
    return sys.platform == "linux" and _read_at_import(environment) == _IMPORTED_WITH


def run(command, cwd, environment, timeout) -> subprocess.CompletedProcess:
    """Runs a command, `eva`, `g2l` or `python SCRIPT` and its arguments, as `subprocess.run`."""
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()  # starts it once
    with tempfile.TemporaryDirectory() as folder:
        output = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(target=_run, args=(command, cwd, environment, output))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text() for path in output]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _run(command, cwd, environment, output):
    """Does what Python does with a console script, from its start to its end."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    multiprocessing.set_start_method(None, force=True)
    status = 0
    try:
        if command[0] == "python":
            sys.argv = [str(word) for word in command[1:]]
            sys.path[:0] = [str(Path(sys.argv[0]).parent), str(Path(__file__).parent)]
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            sys.argv = [str(Path(sys.executable).with_name(command[0])), *map(str, command[1:])]
            status = importlib.import_module(_MODULES[command[0]]).main() or 0
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
