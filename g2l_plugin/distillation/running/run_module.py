"""What a module needs so that its runs can be synchronised, saved and resumed."""

from __future__ import annotations

from typing import Any

import torch
from eva.core.models.modules import ModelModule
from typing_extensions import override

from g2l_plugin.distillation.running.run_state import RunState
from g2l_plugin.distillation.running.step_sync import StepSync
from g2l_plugin.errors import UserError


class RunModule(ModelModule):
    """A module of eva whose steps keep no device waiting.

    Attributes:
        step_sync: Loss and requests of the last step, the same on all devices.
        run_state: What the run knows of itself, saved in every checkpoint.
    """

    def __init__(self) -> None:
        """Initializes the module."""
        super().__init__()
        self.step_sync = StepSync()
        self.run_state = RunState()

    @override
    def on_train_start(self) -> None:
        steps = self.all_gather(torch.tensor(self.global_step, device=self.device))
        if (steps != self.global_step).any():
            raise UserError(
                f"The devices resume at different steps: {sorted(set(steps.flatten().tolist()))}. "
                "Expected a folder of runs that all machines share (OUTPUT_ROOT)."
            )
        if self.run_state.finished:  # only what follows the training is left to do
            self.trainer.should_stop = True

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: eva's metrics of a step would wait for the device."""

    def log_from_host(self, name: str, value: float) -> None:
        """Logs a value that the host knows; logging one of the device would wait for it."""
        self.log(name, torch.tensor(value), rank_zero_only=True)

    def gather_rows(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of all devices, (devices * B, D); gradients flow back to each."""
        return self.all_gather(embeddings, sync_grads=True).flatten(0, -2)

    def mean_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        """Averages values in place. Lightning's own reduction has a barrier that waits."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.trainer.world_size
        return values
