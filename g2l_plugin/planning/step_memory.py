"""How much memory a training step takes on a device, found without the device.

The module's own step runs on tensors that have shapes and no memory (PyTorch's `FakeTensorMode`),
and what is alive is counted. The tensors are fake ones of the CPU, because autocast is off for CUDA
where there is none. The networks of the recipe then keep the same tensors: linear layers and
attention in bfloat16, of which attention keeps query, key, value, output and log-sum, and layer
norms of a float32 residual stream. Eager, as without COMPILE: compiled, a step needs less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from typing_extensions import override

from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running.step_sync import StepSync
from g2l_plugin.errors import UserError
from g2l_plugin.planning.live_bytes import LiveBytes
from g2l_plugin.planning.weightless import build_weightless
from g2l_plugin.slides.batch import TileBatch

_TRACED = (2, 32, 64)
"""Batches of the steps that are traced. Peaks are linear in the batch from the second on; below it,
where the optimizer's step may be the peak, the line between two is never too low."""

_PRECISIONS = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "32-true": None,
    "32": None,
}
"""Lightning's precisions to the one of autocast; None for none."""

_TILE_SIDE = 256

DEVICE_OVERHEAD = 1e9
"""Bytes on the device beside PyTorch's tensors: CUDA itself, its libraries, gaps. A round figure
for what `nvidia-smi` shows on top of what PyTorch counts."""

_LARGEST = 2**12
"""The largest batch that is looked for."""


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """The memory of a training step, in bytes.

    Attributes:
        teachers: The teachers' weights.
        student: The weights of student and projector.
        gradients: Their gradients.
        optimizer: What the optimizer keeps of each weight.
        view: A tile and its view.
        batches: Batches whose step was traced, ascending.
        peaks: Their peaks, all of the above included.
    """

    teachers: int
    student: int
    gradients: int
    optimizer: int
    view: int
    batches: tuple[int, ...]
    peaks: tuple[int, ...]

    @property
    def fixed(self) -> int:
        """Bytes between two steps: weights, and what the optimizer keeps."""
        return self.teachers + self.student + self.optimizer

    def divided(self, devices: int, largest_block: int) -> StepMemory:
        """The step of a device that keeps its share of the teachers' weights.

        Args:
            devices: Devices that share them.
            largest_block: Bytes of the teachers' largest block. Two are whole at a time: the one
                that is used, and the next.
        """
        teachers = -(-self.teachers // devices)
        saved = max(self.teachers - teachers - 2 * largest_block, 0)
        return dataclasses.replace(
            self, teachers=teachers, peaks=tuple(peak - saved for peak in self.peaks)
        )

    def peak(self, batch: int, micro_batch: int | None = None) -> float:
        """The most bytes that a step holds.

        With micro-batches, gradients of those before are there while one is computed, and the views
        of all.

        Args:
            batch: Tiles in a step.
            micro_batch: Tiles in a forward pass; None takes all.
        """
        if micro_batch is not None and micro_batch < batch:
            return self.peak(micro_batch) + self.gradients + (batch - micro_batch) * self.view
        slope = (self.peaks[-1] - self.peaks[-2]) / (self.batches[-1] - self.batches[-2])
        beyond = max(batch - self.batches[-1], 0) * slope
        return float(np.interp(batch, self.batches, self.peaks)) + beyond

    def activations(self, batch: int, micro_batch: int | None = None) -> float:
        """What a step holds at its peak beside what is there between two steps."""
        return self.peak(batch, micro_batch) - self.fixed


def largest_batch(step: StepMemory, memory: float) -> int | None:
    """The largest power of two whose step fits into a device's memory; None if no tile does."""
    return _largest(lambda batch: step.peak(batch), _LARGEST, memory)


def largest_micro_batch(step: StepMemory, batch: int, memory: float) -> int | None:
    """The largest power of two below the batch that fits as its micro-batch; None if none does."""
    return _largest(lambda micro: step.peak(batch, micro), batch - 1, memory)


def _largest(peak: Callable[[int], float], most: int, memory: float) -> int | None:
    sizes = [2**n for n in range(most.bit_length())]
    return max((n for n in sizes if peak(n) + DEVICE_OVERHEAD <= memory), default=None)


class _NoSync(StepSync):
    """Exchanges nothing: the loss has no value."""

    @override
    def exchange(self, step: int, loss: torch.Tensor, mean: Callable[..., torch.Tensor]) -> None:
        pass


def step_alone(module: DistillationModule) -> None:
    """Lets a module make its first step, on one device, without a trainer; nothing is logged."""
    trainer: Any = types.SimpleNamespace(
        world_size=1,
        global_rank=0,
        global_step=0,
        log_every_n_steps=10**9,
        strategy=types.SimpleNamespace(all_gather=lambda rows, **_: rows),
    )
    module.trainer = trainer


class Tracer:
    """Steps of a module on fake tensors."""

    def __init__(self, module: DistillationModule, precision: str) -> None:
        """Builds the module's networks without weights.

        Args:
            module: A module whose networks are not built yet. It cannot be trained afterwards.
            precision: Lightning's name of the precision.

        Raises:
            UserError: The precision is another, or a network cannot be built without its weights.
        """
        if precision not in _PRECISIONS:
            raise UserError(
                f"PRECISION is {precision!r}. Memory can be planned for {', '.join(_PRECISIONS)}."
            )
        self._dtype = _PRECISIONS[precision]
        self._module = module
        if not hasattr(module, "objective"):
            build_weightless(module)
        module.train()
        step_alone(module)
        module.step_sync = _NoSync()
        self._live = LiveBytes()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with self._counted():
            module.to_empty(device="cpu")
            self._trained = [p for p in module.parameters() if p.requires_grad]
            self._optimizer: Optimizer = module.optimizer(self._trained)
            weights = self._live.now
            for weight in self._trained:
                weight.grad = torch.empty_like(weight)
            self.gradients = self._live.now - weights
            self._optimizer.step()  # makes what it keeps
            self._optimizer.zero_grad()
            self.optimizer = self._live.now - weights
            self.weights = weights

    def peak(self, batch: int, micro_batch: int | None = None) -> int:
        """Bytes at the peak of a step."""
        module = self._module
        module.micro_batch_size = micro_batch
        with self._counted(), torch.random.fork_rng(devices=[]):
            tiles = torch.empty(batch, 3, _TILE_SIDE, _TILE_SIDE, dtype=torch.uint8)
            self._live.start_peak()
            with torch.autocast("cpu", self._dtype, enabled=self._dtype is not None):
                output: Any = module.training_step(TileBatch(tiles, np.arange(batch), None, 0))
            loss = output.pop("loss")
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return self._live.peak

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._fakes, self._live:
            yield


def trace(module: DistillationModule, precision: str = "bf16-mixed") -> StepMemory:
    """Finds the memory of a module's step.

    Args:
        module: A module whose networks are not built yet. It cannot be trained afterwards.
        precision: Lightning's name of the precision.

    Raises:
        UserError: A network cannot be built without its weights, or the precision is another.
    """
    tracer = Tracer(module, precision)
    teachers = sum(
        parameter.nbytes
        for encoder in module.teachers.encoders
        for parameter in encoder.parameters()
    )
    return StepMemory(
        teachers=teachers,
        student=tracer.weights - teachers,
        gradients=tracer.gradients,
        optimizer=tracer.optimizer,
        view=3 * (_TILE_SIDE**2 + 4 * module.view.size**2),
        batches=_TRACED,
        peaks=tuple(tracer.peak(batch) for batch in _TRACED),
    )
