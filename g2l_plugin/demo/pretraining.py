"""Trains the demo teacher on the tissue classes of the demo cohort."""

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

from g2l_plugin.demo.tissue import TISSUE_CLASSES
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import export_student
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.slides.views import AugmentedView, center_view

_CARD = """# The demo teacher of G2L for eva

A small ViT trained with labels on a generated, H&E-like cohort
(`eva fit --config configs/demo_teacher.yaml`, {steps:,} steps, {parameters:.2f} M parameters). It
has never seen real tissue; use it only to try the package without a download.
"""


class SupervisedPretraining(ModelModule):
    """Trains an encoder with a linear classifier, then exports the encoder alone.

    Real teachers are pretrained without labels, at a far larger scale. The generated cohort has
    labels, and with them a few minutes of training are enough.
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
        """Initializes the module; `configure_model` loads the encoder.

        Args:
            encoder: Source of the encoder to train.
            view: Augmentation of the training tiles.
            label_smoothing: Label smoothing of the cross-entropy.
            optimizer: The optimiser.
            lr_scheduler: Learning rate scheduler, stepped after every optimiser step.
            metrics: The metric groups to track.
        """
        super().__init__(metrics=metrics)
        self.encoder_source = encoder
        self.view = view
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._encoder: Encoder | None = None
        self._head: nn.Linear | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder; available after `configure_model`."""
        if self._encoder is None:
            raise RuntimeError("The encoder is not loaded yet. Call `configure_model` first.")
        return self._encoder

    @override
    def configure_model(self) -> None:
        if self._encoder is None:
            self._encoder = self.encoder_source.load()
            self._head = nn.Linear(self._encoder.embedding_dim, len(TISSUE_CLASSES))

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (B, classes) of RGB images in [0, 1], (B, 3, H, W)."""
        features = self.encoder(images)
        assert self._head is not None  # created with the encoder
        return self._head(features)

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
        run_folder = Path(self.trainer.log_dir)  # a collective call, so on every device
        if self.trainer.is_global_zero:
            parameters = sum(p.numel() for p in self.encoder.parameters()) / 1e6
            card = _CARD.format(steps=self.trainer.global_step, parameters=parameters)
            folder = export_student(self.encoder, run_folder / "teacher", card=card)
            print(f"Teacher: {folder}")

    def _classify(self, batch: Any) -> dict[str, torch.Tensor]:
        images, targets = batch
        predictions = self(images)
        loss = functional.cross_entropy(predictions, targets, label_smoothing=self.label_smoothing)
        self.log("train/loss" if self.training else "val/loss", loss, prog_bar=True)
        return {"loss": loss, "predictions": predictions, "targets": targets}
