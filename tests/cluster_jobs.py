"""Functions that the workers of a test's cluster can import."""

import os
import signal
import time
from pathlib import Path


def double(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 9:
        time.sleep(1000)
    if number == 100:
        raise ValueError("a hundred")
    return 2 * number


def change_path(path: str) -> str:
    before, os.environ["PATH"] = os.environ["PATH"], path
    return before


def die_the_first_time(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"
