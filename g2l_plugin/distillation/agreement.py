"""What all devices know of a step: its loss and who wishes what, without waiting for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from g2l_plugin.transfer import start_copy


@dataclasses.dataclass(frozen=True)
class Agreed:
    """What the devices agreed on in one step.

    Attributes:
        step: Optimizer steps taken before it.
        loss: Its loss, the mean over the devices.
        stop: Whether a device was asked to end.
        save: Whether a device wishes a checkpoint.
    """

    step: int
    loss: float
    stop: bool = False
    save: bool = False


class Agreement:
    """Tells each step what was agreed on in the step before.

    The values of a step are averaged over the devices and copied to the host while the device goes
    on; the host reads them one step later, when they have long been there. Every device reads the
    same values at the same step: so all of them stop, or save, together.

    Attributes:
        known: What was agreed on in the last step that is known; None before the second step.
    """

    def __init__(self) -> None:
        """Initializes the agreement; nothing is known."""
        self.known: Agreed | None = None
        self._pending: Callable[[], Agreed] | None = None

    def exchange(
        self,
        step: int,
        loss: torch.Tensor,
        stop: bool,
        save: bool,
        mean: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Hands in the values of a step and makes those of the step before known.

        Args:
            step: Optimizer steps taken before it.
            loss: Its loss on this device, a scalar.
            stop: Whether this device was asked to end.
            save: Whether this device wishes a checkpoint.
            mean: Averages a tensor over the devices.
        """
        loss = loss.detach().float()
        values = torch.stack([loss, loss.new_full((), stop), loss.new_full((), save)])
        read = start_copy(mean(values))
        self.flush()

        def pending() -> Agreed:
            value, stops, saves = read().tolist()
            return Agreed(step, value, stops > 0, saves > 0)

        self._pending = pending

    def peek(self) -> Agreed | None:
        """What was agreed on in the last step, waited for; None where there is none to come."""
        return self._pending() if self._pending is not None else None

    def flush(self) -> None:
        """Makes known what was agreed on in the last step."""
        self.known, self._pending = self.peek(), None

    def state_dict(self) -> dict[str, Any] | None:
        """The last step as plain values; a wish does not outlive its process."""
        last = self.peek()
        return {"step": last.step, "loss": last.loss} if last is not None else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes up what `state_dict` gave."""
        self.known, self._pending = None, None
        if state is not None:
            last = Agreed(state["step"], state["loss"])
            self._pending = lambda: last
