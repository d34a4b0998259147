"""What the study tried and the package does not have; rows.yaml names it by its class path."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3

import g2l_plugin


class ChannelsLast(pl.Callback):
    """Convolutions in the memory layout in which a CPU computes them up to twice as fast."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Converts the networks, before they are evaluated."""
        for encoder in (pl_module.student, *pl_module.teachers.encoders):
            encoder.model.to(memory_format=torch.channels_last)


class AveragedWeights(pl.Callback):
    """Ends a run with the exponential moving average of the student's weights."""

    def __init__(self, decay: float = 0.999) -> None:
        """Initializes the callback.

        Args:
            decay: Decay of the average, approached from below as in timm.
        """
        self.decay = decay
        self.average: ModelEmaV3 | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts the average."""
        self.average = ModelEmaV3(pl_module.student.model, decay=self.decay, use_warmup=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Updates the average."""
        self.average.update(pl_module.student.model, step=trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replaces the weights; the last validation and checkpoint follow."""
        pl_module.student.model.load_state_dict(self.average.module.state_dict())


class WithoutDecayOfNorms(g2l_plugin.DistillationModule):
    """Weight decay for matrices and kernels alone."""

    def configure_optimizers(self) -> Any:
        """Builds the optimizer with two groups of parameters."""
        build = self.optimizer
        self.optimizer = lambda parameters: build(
            param_groups_weight_decay(self, weight_decay=0.05)
        )
        return super().configure_optimizers()
