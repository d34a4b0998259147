"""Stage one of the method in miniature: a teacher learns the tissue classes of the demo cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from eva.core.metrics import structs
from eva.core.models.modules import ModelModule
from eva.core.models.modules.typings import INPUT_BATCH
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn, optim
from torch.nn import functional
from torch.optim import lr_scheduler
from typing_extensions import override

from g2l_plugin.demo.cohort import TISSUE_CLASSES
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.publishing.export import export_student
from g2l_plugin.slides.views import AugmentedView, center_view

_CARD = """# The demo teacher of G2L for eva

A small ViT trained with labels on a generated, H&E-like cohort
(`eva fit --config configs/demo_teacher.yaml`, {steps:,} steps, {parameters:.2f} M parameters). It
has never seen tissue and is of no use but to try the package without a download.
"""


class SupervisedPretraining(ModelModule):
    """Trains an encoder with a linear classifier, then exports the encoder alone.

    Real teachers are trained on a giga scale without labels; the generated cohort knows its labels,
    and a few minutes must do.
    """

    def __init__(
        self,
        encoder: EncoderSource,
        view: AugmentedView,
        label_smoothing: float = 0.1,
        optimizer: OptimizerCallable = optim.AdamW,
        lr_scheduler: LRSchedulerCallable = lr_scheduler.ConstantLR,
        metrics: structs.MetricsSchema | None = None,
    ) -> None:
        """Initializes the module.

        Args:
            encoder: Where the encoder starts from.
            view: The augmentation.
            label_smoothing: Of the cross-entropy.
            optimizer: The optimizer to use.
            lr_scheduler: The learning rate scheduler to use, stepped after every optimizer step.
            metrics: The metric groups to track.
        """
        super().__init__(metrics=metrics)
        self.encoder_source = encoder
        self.view = view
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.encoder: Encoder = None  # type: ignore[assignment]
        self.head: nn.Module = None  # type: ignore[assignment]

    @override
    def configure_model(self) -> None:
        if self.encoder is None:
            self.encoder = self.encoder_source.load()
            self.head = nn.Linear(self.encoder.embedding_dim, len(TISSUE_CLASSES))

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        tiles, targets, _ = INPUT_BATCH(*batch)
        images = self.view(tiles) if self.training else center_view(tiles, self.view.size)
        return images, targets

    @override
    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        return self._classify(batch)

    @override
    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        return self._classify(batch)

    @override
    def on_fit_end(self) -> None:
        run_folder = Path(self.trainer.log_dir)  # devices agree on it: all must ask
        if self.trainer.is_global_zero:
            parameters = sum(p.numel() for p in self.encoder.parameters()) / 1e6
            card = _CARD.format(steps=self.trainer.global_step, parameters=parameters)
            folder = export_student(self.encoder, run_folder / "teacher", card=card)
            print(f"Teacher: {folder}")

    def _classify(self, batch: Any) -> dict[str, torch.Tensor]:
        images, targets = batch
        predictions = self.head(self.encoder(images))
        loss = functional.cross_entropy(predictions, targets, label_smoothing=self.label_smoothing)
        self.log("train/loss" if self.training else "val/loss", loss, prog_bar=True)
        return {"loss": loss, "predictions": predictions, "targets": targets}
