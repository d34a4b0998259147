"""`eva`, `g2l` and `python`, in processes forked from one that has imported what they import.

The imports take 7 to 9 seconds of a command. Everything else is as in a process of its own:
arguments, environment, folder, streams, signals, status. What libraries read from the environment
as they are imported is as well: with other variables of the Hub than the tests', a command is
forked before what reads these is imported; with another of the rest, it is the real one.

`install` lays out commands that have this file ask `fork_server.py`, for the tests and for what
looks on the PATH. As a program it imports little: it starts for each command.
"""

import contextlib
import json
import os
import signal
import socket
import sys

FOLDER = "G2L_TESTS_COMMANDS"
"""Variable with the folder of the commands, the server's socket and its environment."""

COMMANDS = ("eva", "g2l", "python")

SOCKETS = ("any_hub", "our_hub")
"""Where commands are asked for: with any variables of the Hub, and with those of the tests."""

_HUBS = "HF_"
_READ_AT_IMPORT = (_HUBS, "PYTHON", "OMP_", "G2L_PLUGIN_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")
"""How variables begin that libraries read as they are imported."""


def install(folder: str) -> None:
    """Lays out the commands, and puts them on the PATH of this process and those that it starts."""
    for name in COMMANDS:
        file = os.path.join(folder, name)
        with open(file, "w") as program:
            program.write(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} {name} "$@"\n')
        os.chmod(file, 0o755)
    with open(os.path.join(folder, "owner"), "w") as file:
        file.write(str(os.getpid()))
    os.environ[FOLDER] = folder
    os.environ["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])


def read_at_import(environment) -> dict[str, str]:
    """What of an environment libraries read as they are imported."""
    return {key: text for key, text in environment.items() if key.startswith(_READ_AT_IMPORT)}


def real(name: str) -> str:
    """Path of the command that one of these stands for."""
    return (
        sys.executable if name == "python" else os.path.join(os.path.dirname(sys.executable), name)
    )


def _server() -> socket.socket | None:
    """A connection to the server; None without one that has imported what this process would."""
    folder, ours = os.environ.get(FOLDER, ""), read_at_import(os.environ)
    try:
        with open(os.path.join(folder, "environment.json")) as file:
            theirs = json.load(file)
        other = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        if not all(key.startswith(_HUBS) for key in other):
            return None
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.path.join(folder, SOCKETS[not other]))
    except OSError:
        return None
    return connection


def _end_as(status: int) -> None:
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def main() -> None:
    """Runs a command, as the server's if it can."""
    name, *arguments = sys.argv[1:]
    connection = _server()
    if connection is not None:
        request = {"command": [name, *arguments], "cwd": os.getcwd(), "environment": {**os.environ}}
        answers, process = connection.makefile(), ""
        with contextlib.suppress(OSError):  # the server has ended
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            process = answers.readline()
        if process:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, lambda number, _: os.kill(int(process), number))
            _end_as(int(answers.readline() or 1))
    if name == "python":
        os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    os.execv(real(name), [real(name), *arguments])


if __name__ == "__main__":
    main()
