"""Processes that take turns: each has the machine alone while it is measured.

The script that compares starts each way to train as a session of its own. A way counts its steps
on a `Clock`, which at the end of a window writes down how long it took and stops the whole session,
data workers too, until the script has it go on. So the ways of one round meet the same machine,
however much others use it meanwhile, and none of them reads ahead in another's time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from training_settings import Settings


def signal_session(session: int, number: signal.Signals) -> None:
    """Sends a signal to all processes of a session, to its first one last.

    Not to a process group: data workers may be in groups of their own.
    """
    members = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(path.name)) == session:
                    members.append(int(path.name))
    for process in sorted(members, key=lambda process: process == session):
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(process, number)


class Clock:
    """Counts steps in windows; one line of JSON a window, then a pause until the next turn.

    The device is synchronised at both ends of a window and never within. Peak memory is of the
    device where it is CUDA, and else of the process without its workers.
    """

    def __init__(
        self,
        warm_up: int,
        steps: int,
        on_cuda: bool = False,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Initializes the clock; the variable WINDOWS names the file that it writes to.

        Args:
            warm_up: Steps before the first window, one at least.
            steps: Steps of a window.
            on_cuda: Whether the steps are run by the current CUDA device.
            describe: Gives what else to write at the end of a window, and starts it anew.
        """
        self._steps = steps
        self._left = warm_up
        self._on_cuda = on_cuda
        self._path = os.environ["WINDOWS"]
        self._describe = describe
        self._start: float | None = None

    @classmethod
    def of(cls, settings: Settings, describe: Callable[[], dict[str, Any]] = dict) -> Clock:
        """A clock for the steps of a training."""
        return cls(settings.warm_up, settings.steps, settings.device == "cuda", describe)

    def step(self) -> None:
        """Ends a step."""
        self._left -= 1
        if self._left:
            return
        if self._on_cuda:
            torch.cuda.synchronize()
        described = self._describe()
        if self._start is not None:
            self._write(time.perf_counter() - self._start, described)
        signal_session(os.getsid(0), signal.SIGSTOP)
        self._left = self._steps
        self._start = time.perf_counter()

    def _write(self, seconds: float, described: dict[str, Any]) -> None:
        peak = (
            torch.cuda.max_memory_allocated()
            if self._on_cuda
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        window = {"seconds": seconds, "steps": self._steps, "peak_memory_bytes": peak}
        with open(self._path, "a") as file:
            file.write(json.dumps(window | described) + "\n")


class Failed(Exception):
    """A way ended before its turn did; the message says why."""


class Way:
    """A session that takes turns, as the script sees it."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Initializes the way; nothing is started.

        Args:
            command: What to run; its clock writes to the file that WINDOWS names.
            folder: Where to keep what it writes; the working directory.
            environment: Environment variables beyond those of this process.
        """
        self._command = list(command)
        self._folder = folder
        self._windows = folder / "windows.jsonl"
        self._environment = os.environ | dict(environment) | {"WINDOWS": str(self._windows)}
        self._process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Starts it and has it warm up, where it has not been started yet.

        Raises:
            Failed: It ended meanwhile.
        """
        if self._process is None:
            self._start()
            self._wait()

    def turn(self) -> dict[str, Any]:
        """Has it go on for a window, after its warm-up where it has not begun yet.

        Returns:
            What its clock has written.

        Raises:
            Failed: It ended meanwhile.
        """
        self.begin()
        assert self._process is not None
        signal_session(self._process.pid, signal.SIGCONT)
        self._wait()
        return json.loads(self._windows.read_text().splitlines()[-1])

    def finish(self) -> dict[str, Any]:
        """Has it go on to its end, without turns; gives what it has written, as `turn` does."""
        try:
            if code := self._start().wait():
                raise Failed(self._explain(code))
        finally:
            self.stop()
        return json.loads(self._windows.read_text())

    def stop(self) -> None:
        """Ends it, with all its workers."""
        if self._process is not None:
            signal_session(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "log", "w") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process

    def _wait(self) -> None:
        assert self._process is not None
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise Failed(self._explain(os.waitstatus_to_exitcode(status)))

    def _explain(self, code: int) -> str:
        printed = (self._folder / "log").read_text()
        if "out of memory" in printed:
            return "out of memory"
        return f"exit status {code}; the end of what it printed:\n{printed[-2000:]}"


def take_turns(ways: dict[str, Way], rounds: int, one_at_a_time: bool) -> dict[str, list[dict]]:
    """The windows of each way, one a round; none where it failed, which is told."""
    windows: dict[str, list[dict]] = {name: [] for name in ways}
    going = list(ways)
    order = [] if one_at_a_time else list(ways)  # all begin before the first is measured
    for number in range(rounds):
        first = number % len(ways)  # else a machine that slows down favours the first
        order += [*going[first:], *going[:first]]
    bar = tqdm(total=len(order), desc="Measuring", unit="turn", leave=False)
    try:
        for number, name in enumerate(order):
            bar.set_postfix_str(name)
            if name in going:
                try:
                    if one_at_a_time or number >= len(ways):
                        windows[name].append(ways[name].turn())
                    else:
                        ways[name].begin()
                except Failed as failure:
                    windows[name] = []
                    going.remove(name)
                    tqdm.write(f"{name} failed: {failure}")
                if one_at_a_time or name not in going:
                    ways[name].stop()
            bar.update()
    finally:
        bar.close()
        for way in ways.values():
            way.stop()
    return windows
