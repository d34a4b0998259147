"""What the study tried and the package does not have; rows.yaml names it by its class path."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import g2l_plugin
from g2l_plugin.distillation.objective import Objective
from g2l_plugin.evaluation.stain import StainChange
from g2l_plugin.transfer import to_device


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


class WithWeightNorm(g2l_plugin.DistillationModule):
    """The rows of the projector's weight have a length of their own.

    The batch norm after the projector undoes any length: what changes is how directions are
    learned, since their gradient is at right angles to them.
    """

    def configure_model(self) -> None:
        """Builds the networks and the objective."""
        if hasattr(self, "objective"):
            return
        super().configure_model()
        for part in self.objective.modules():
            if isinstance(part, Objective):
                weight_norm(part.projector)


class StainJitter(torch.nn.Module):
    """Changes the amounts of the stains, and the sharpness, of half of the images at random.

    The stains' changes follow Tellez et al. 2018 (arXiv 1808.05896): each stain's amount s becomes
    a·s + b, with a in [0.8, 1.2] and b, an optical density to base e, in [-0.05, 0.05].
    """

    def __init__(self) -> None:
        """Initializes the jitter."""
        super().__init__()
        self.change = StainChange()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Changes some of the images in [0, 1], (B, 3, H, W)."""
        changed = torch.rand(len(images)) < 0.5  # (B,)
        draws = torch.rand(len(images), 2, 3) * 2 - 1  # (B, 2, 3) in [-1, 1]
        scale = 1 - torch.rand(()).item() * 0.5
        if not changed.any():
            return images
        index = to_device(changed.nonzero().flatten().numpy(), images.device)
        factors, shifts = to_device((draws[changed] * 0.2).numpy(), images.device).unbind(1)
        part = self.change(images.index_select(0, index).float(), 1 + factors, shifts / 4)
        size = list(part.shape[-2:])
        for sides in ([max(1, round(side * scale)) for side in size], size):
            part = functional.interpolate(part, sides, mode="bilinear", antialias=True)
        return images.float().index_copy(0, index, part)


class WithStainJitter(g2l_plugin.DistillationModule):
    """The student sees changed stains, and is to embed them as its teachers embed the unchanged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initializes the module."""
        super().__init__(*args, **kwargs)
        self.jitter = StainJitter()

    def _embed_with_student(self, images: torch.Tensor, *args: Any) -> Any:
        if self.training:
            images = self.jitter(images)
        return super()._embed_with_student(images, *args)
