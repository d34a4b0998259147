"""Processes that take turns, and what each of them needs: its settings and its clock.

The script that compares starts each way to train as a separate session. A way counts its steps
on a `Clock`. At the end of a window of steps, the clock writes down how long the window took and
stops the whole session, data workers included, until the script continues it. So all ways of a
round run on the same machine under the same load, and none reads ahead while another is measured.

Needs only PyTorch, timm and tqdm, so that it also runs in LightlyTrain's environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

IMAGE_SIZE = 224
"""Side of a view, in pixels."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with random weights.

    Attributes:
        source: The source for `g2l_plugin.load_encoder`.
        kwargs: Its `model_kwargs`.
        architecture: timm's name of the same network.
        architecture_kwargs: Arguments for `timm.create_model`.
    """

    source: str
    kwargs: dict[str, Any]
    architecture: str
    architecture_kwargs: dict[str, Any]

    def create(self) -> nn.Module:
        """Builds the network with timm, without a classifier."""
        kwargs = dict(self.architecture_kwargs)
        if isinstance(kwargs.get("mlp_layer"), str):
            kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
        return timm.create_model(self.architecture, num_classes=0, **kwargs)

    def describe(self) -> dict[str, Any]:
        """Counts parameters, features and the operations of one image's forward pass."""
        with torch.device("meta"):  # no memory for the weights
            network: Any = self.create().eval()
            image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
        return {
            "source": self.source,
            "architecture": self.architecture,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "features": network.num_features,
            "flops": counter.get_total_flops(),
        }


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all ways of one comparison share; each process reads it from a file.

    Attributes:
        teacher: The teacher.
        student: The student.
        batch_size: Tiles in a step.
        warm_up: Steps before the first window.
        steps: Steps in a window.
        precision: Lightning's name: 32-true or bf16-mixed.
        teacher_dtype: Precision of the teacher's weights: float32 or bfloat16.
        device: cpu or cuda.
        threads: PyTorch's threads on the CPU.
        workers: Data workers.
        data: Arguments of `g2l_plugin.TileDataset`.
        tiles: File of tiles, uint8 (N, 3, 256, 256).
        images: Folder of the same tiles as JPEG files.
    """

    teacher: Network
    student: Network
    batch_size: int
    warm_up: int
    steps: int
    precision: str
    teacher_dtype: str
    device: str
    threads: int
    workers: int
    data: dict[str, Any]
    tiles: str = ""
    images: str = ""

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    def write(self, path: Path) -> dict[str, str]:
        """Writes the file; returns the environment variables of a process that reads it."""
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return {"SETTINGS": str(path), "OMP_NUM_THREADS": str(self.threads)}

    @staticmethod
    def read() -> Settings:
        """Reads the file named by the environment variable SETTINGS."""
        values = json.loads(Path(os.environ["SETTINGS"]).read_text())
        for name in ("teacher", "student"):
            values[name] = Network(**values[name])
        return Settings(**values)


class Clock:
    """Counts steps; after each window writes one line of JSON and waits for the next turn.

    The device is synchronised at both ends of a window and never within. Peak memory is the
    device's on CUDA, and otherwise the process's without its workers.
    """

    def __init__(
        self,
        warm_up: int,
        steps: int,
        on_cuda: bool = False,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Initializes the clock; the environment variable WINDOWS names the file it writes.

        Args:
            warm_up: Steps before the first window, at least one.
            steps: Steps in a window.
            on_cuda: Whether the current CUDA device runs the steps.
            describe: Returns what else to write at the end of a window, and resets it.
        """
        self._steps = steps
        self._left = warm_up
        self._on_cuda = on_cuda
        self._path = os.environ["WINDOWS"]
        self._describe = describe
        self._start: float | None = None

    @classmethod
    def of(cls, settings: Settings, describe: Callable[[], dict[str, Any]] = dict) -> Clock:
        """Creates the clock of a training."""
        return cls(settings.warm_up, settings.steps, settings.on_cuda, describe)

    def step(self) -> None:
        """Counts a step that has ended."""
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
    """A way ended before its turn did; the message gives the reason."""


class Way:
    """A session that shares the machine with others in turns, seen from the comparing script."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Initializes the way without starting it.

        Args:
            command: What to run; its clock writes to the file named by WINDOWS.
            folder: Its working directory, which also holds its log.
            environment: Environment variables beyond those of this process.
        """
        self._command = list(command)
        self._folder = folder
        self._windows = folder / "windows.jsonl"
        self._environment = os.environ | dict(environment) | {"WINDOWS": str(self._windows)}
        self._process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Starts the process and waits for its warm-up, unless it runs already.

        Raises:
            Failed: The process has ended.
        """
        if self._process is None:
            self._wait(self._start())

    def turn(self) -> dict[str, Any]:
        """Runs one window, after the warm-up if the process is new.

        Returns:
            What its clock has written.

        Raises:
            Failed: The process has ended.
        """
        self.begin()
        assert self._process is not None
        signal_session(self._process.pid, signal.SIGCONT)
        self._wait(self._process)
        return json.loads(self._windows.read_text().splitlines()[-1])

    def finish(self) -> dict[str, Any]:
        """Runs the process to its end, without turns; returns what it has written."""
        try:
            if code := self._start().wait():
                raise Failed(self._explain(code))
        finally:
            self.stop()
        return json.loads(self._windows.read_text())

    def stop(self) -> None:
        """Ends the process and all its workers."""
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

    def _wait(self, process: subprocess.Popen) -> None:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise Failed(self._explain(os.waitstatus_to_exitcode(status)))

    def _explain(self, code: int) -> str:
        printed = (self._folder / "log").read_text()
        if "out of memory" in printed:
            return "out of memory"
        return f"exit status {code}; the end of its output:\n{printed[-2000:]}"


def take_turns(ways: dict[str, Way], rounds: int, one_at_a_time: bool) -> dict[str, list[dict]]:
    """Measures all ways in turn.

    Args:
        ways: The ways by name.
        rounds: Windows of each way.
        one_at_a_time: Whether to end each way after its turn and start it again in the next round.

    Returns:
        The windows of each way, one per round; empty if the way failed, which is printed.
    """
    windows: dict[str, list[dict]] = {name: [] for name in ways}
    running = list(ways)
    order = [] if one_at_a_time else list(ways)  # all warm up before the first is measured
    for number in range(rounds):
        first = number % len(ways)  # a machine that slows down must not favour one way
        order += [*running[first:], *running[:first]]
    bar = tqdm(total=len(order), desc="Measuring", unit="turn", leave=False)
    try:
        for number, name in enumerate(order):
            bar.set_postfix_str(name)
            if name in running:
                try:
                    if one_at_a_time or number >= len(ways):
                        windows[name].append(ways[name].turn())
                    else:
                        ways[name].begin()
                except Failed as failure:
                    windows[name] = []
                    running.remove(name)
                    tqdm.write(f"{name} failed: {failure}")
                if one_at_a_time or name not in running:
                    ways[name].stop()
            bar.update()
    finally:
        bar.close()
        for way in ways.values():
            way.stop()
    return windows


def signal_session(session: int, number: signal.Signals) -> None:
    """Sends a signal to all processes of a session, to its leader last.

    A process group would not do: data workers may be in groups of their own.
    """
    members = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(path.name)) == session:
                    members.append(int(path.name))
    for process in sorted(members, key=lambda process: process == session):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process, number)
