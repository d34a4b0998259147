"""The loss and the requests of each step, shared by all devices without waiting for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from g2l_plugin.transfer import start_copy


@dataclasses.dataclass(frozen=True)
class SyncedStep:
    """What all devices know of one step.

    Attributes:
        step: Optimizer steps before it.
        loss: The loss, the mean over the devices.
        stop: Whether a device was asked to stop.
        save: Whether a device asks for a checkpoint.
    """

    step: int
    loss: float
    stop: bool = False
    save: bool = False


class StepSync:
    """Averages the values of each step over the devices; the host reads them one step later.

    By then they have arrived, so the host never waits. Every device reads the same values at the
    same step: all of them stop, or save, together.

    Attributes:
        last: The last step that is known; None before the second step.
        stop_requested: Set it to ask all devices to stop.
        save_requested: Set it to ask all devices for a checkpoint.
    """

    def __init__(self) -> None:
        """Initializes the sync; no step is known."""
        self.last: SyncedStep | None = None
        self.stop_requested = False
        self.save_requested = False
        self._pending: Callable[[], SyncedStep] | None = None

    def exchange(
        self,
        step: int,
        loss: torch.Tensor,
        mean: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Sends the loss and the requests of a step, and sets `last` to the step before it.

        Args:
            step: Optimizer steps before it.
            loss: The loss on this device, a scalar.
            mean: Averages a tensor over the devices.
        """
        loss = loss.detach().float()
        requests = (self.stop_requested, self.save_requested)
        values = torch.stack([loss, *(loss.new_full((), flag) for flag in requests)])  # (3,)
        read = start_copy(mean(values))
        self.flush()

        def pending() -> SyncedStep:
            value, stops, saves = read().tolist()
            return SyncedStep(step, value, stops > 0, saves > 0)

        self._pending = pending

    def peek(self) -> SyncedStep | None:
        """Waits for the values of the step under way; None where there is none."""
        return self._pending() if self._pending is not None else None

    def flush(self) -> None:
        """Sets `last` to the step under way."""
        self.last, self._pending = self.peek(), None

    def state_dict(self) -> dict[str, Any] | None:
        """The step under way as plain values; requests end with their process."""
        last = self.peek()
        return {"step": last.step, "loss": last.loss} if last is not None else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores what `state_dict` returned."""
        self.last, self._pending = None, None
        if state is not None:
            last = SyncedStep(state["step"], state["loss"])
            self._pending = lambda: last
