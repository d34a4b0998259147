"""The distillation module: teacher, student, objective, one step."""

from __future__ import annotations

import time
from typing import Any

import torch
from eva.core.models.modules import ModelModule
from eva.core.models.modules.typings import INPUT_BATCH
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import optim
from torch.optim import lr_scheduler
from typing_extensions import override

from g2l_plugin.distillation.losses import DistillationLoss, LogSumLoss
from g2l_plugin.distillation.objective import Objective
from g2l_plugin.distillation.record import (
    KEY,
    EncoderRecord,
    RunRecord,
    describe_hardware,
    describe_loss,
    record_encoder,
)
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import timm_config
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.cka import linear_cka
from g2l_plugin.slides.views import AugmentedView, center_view

_TEACHER_PREFIX = "teacher."


class DistillationModule(ModelModule):
    """Distils a frozen teacher into a student on one augmented view that both see.

    Both encoders are built in `configure_model`, once: eva copies modules before it fits them, and
    a giga-scale teacher must not be held twice. The teacher is in no state dict and no checkpoint.

    Source: arXiv 2510.11176.
    """

    def __init__(
        self,
        teacher: EncoderSource,
        student: EncoderSource,
        loss: DistillationLoss | None = None,
        view: AugmentedView | None = None,
        normalize_teacher: bool = True,
        optimizer: OptimizerCallable = optim.AdamW,
        lr_scheduler: LRSchedulerCallable = lr_scheduler.ConstantLR,
    ) -> None:
        """Initializes the module; no model is loaded yet.

        Args:
            teacher: Where the teacher is from.
            student: Where the student starts from.
            loss: The loss between projected student and teacher; None takes the log-sum loss.
            view: The augmentation; None takes the paper's.
            normalize_teacher: Whether the teacher's embeddings pass a batch norm before the loss.
            optimizer: The optimizer to use.
            lr_scheduler: The learning rate scheduler to use, stepped after every optimizer step.
        """
        super().__init__()
        self.teacher_source = teacher
        self.student_source = student
        self.loss = loss or LogSumLoss()
        self.view = view or AugmentedView()
        self.normalize_teacher = normalize_teacher
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        # Checked by hand in `on_load_checkpoint`: the teacher is always missing.
        self.strict_loading = False

        self.teacher: Encoder = None  # type: ignore[assignment]
        self.student: Encoder = None  # type: ignore[assignment]
        self.objective: Objective = None  # type: ignore[assignment]
        self.tiles_seen = 0
        self.finished = False
        self.alignment: dict[str, float] = {}
        self._network: dict[str, Any] = {}
        self._encoders: tuple[EncoderRecord, EncoderRecord] | None = None
        self._seconds, self._since = 0.0, time.monotonic()
        self._validation_embeddings: list[tuple[torch.Tensor, ...]] = []

    @override
    def configure_model(self) -> None:
        if self.objective is not None:
            return
        # The student first: a wrong name is told before gigabytes of teacher are read.
        self.student = self.student_source.load()
        _check(self.student, self.view.size)
        if self.student.output != "class_token":
            raise UserError(
                f"The student's output is {self.student.output!r}. Expected class_token: that is "
                "what the published model gives. A teacher may give class_and_mean_patch."
            )
        # Now, and not when the run ends: what cannot be published is told.
        self._network = timm_config(self.student)
        self.teacher = self.teacher_source.load().eval().requires_grad_(False)
        _check(self.teacher, self.view.size)
        self.objective = Objective(
            self.student.embedding_dim,
            self.teacher.embedding_dim,
            self.loss,
            self.normalize_teacher,
        )

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def train(self, mode: bool = True) -> DistillationModule:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @override
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Embeds images in [0, 1] (B, 3, H, W) with the student, (B, D)."""
        return self.student(tensor)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> torch.Tensor:
        tiles = batch if isinstance(batch, torch.Tensor) else INPUT_BATCH(*batch).data
        return self.view(tiles) if self.training else center_view(tiles, self.view.size)

    @override
    def training_step(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        # Counted here and not after the batch: a checkpoint is written before that.
        self.tiles_seen += len(batch) * self.trainer.world_size
        student, teacher = self._embed(batch)
        loss = self.objective(student, teacher)
        self.log("train/loss", loss, prog_bar=True)
        group = self.optimizers().param_groups[0]
        self.log_dict({"train/lr": group["lr"], "train/weight_decay": group["weight_decay"]})
        return {"loss": loss}

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not torch.isfinite(outputs["loss"]):
            raise UserError(
                f"The loss is {float(outputs['loss'])} at step {self.global_step}. Lower the "
                "learning rate (LR_VALUE) or use a wider PRECISION; an earlier checkpoint is kept "
                f"under {self.trainer.default_root_dir}."
            )

    @override
    def validation_step(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        student, teacher = self._embed(batch)
        projected, target = self.objective.project(student, teacher)
        self._validation_embeddings.append((student, teacher, projected, target))
        return None

    @override
    def on_validation_epoch_end(self) -> None:
        parts = zip(*self._validation_embeddings, strict=True)
        gathered = self.all_gather([torch.cat(part) for part in parts])
        self._validation_embeddings.clear()
        student, teacher, projected, target = (part.flatten(0, -2).float() for part in gathered)
        metrics = {
            "val/cosine": torch.cosine_similarity(projected, target, dim=-1).mean(),
            "val/cka": linear_cka(student, teacher),
        }
        self.log_dict(metrics)
        self.alignment = {name: float(value) for name, value in metrics.items()}
        self.alignment["step"] = self.trainer.global_step

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prefix = kwargs.get("prefix", "") + _TEACHER_PREFIX
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]
        return state

    @override
    def on_fit_start(self) -> None:
        size = self.view.size
        self._encoders = (record_encoder(self.teacher, size), record_encoder(self.student, size))
        self._since = time.monotonic()

    def record(self) -> RunRecord:
        """What the run knows of itself, from the start of the fit on."""
        assert self._encoders is not None
        teacher, student = self._encoders
        datasets = getattr(getattr(self.trainer, "datamodule", None), "datasets", None)
        describe = getattr(getattr(datasets, "train", None), "describe_cohort", dict)
        return RunRecord(
            teacher=teacher,
            student=student,
            network=self._network,
            loss=describe_loss(self.loss),
            finished=self.finished,
            step=self.trainer.global_step,
            tiles_seen=self.tiles_seen,
            seconds=self._seconds + time.monotonic() - self._since,
            hardware=describe_hardware(self.device, self.trainer.world_size),
            cohort=describe(),
            alignment=self.alignment,
        )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.record().to_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected, given = (
            {(name, value.shape) for name, value in state.items()}
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        if expected != given or KEY not in checkpoint:
            raise UserError(
                f"The checkpoint is of another student or objective: {len(expected - given)} "
                f"weights are missing and {len(given - expected)} unknown. Resume with the "
                "configuration that wrote it."
            )
        record = checkpoint[KEY]
        had, has = record["teacher"]["provenance"], self.teacher.provenance
        if had["sha256"] != has.sha256:
            raise UserError(
                f"The checkpoint is of a run with another teacher: {had['source']} of sha256 "
                f"{had['sha256']}, and now {has.source} of {has.sha256}. Resume with its teacher."
            )
        self.tiles_seen, self._seconds = record["tiles_seen"], record["seconds"]
        self.alignment = dict(record["alignment"])

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Student (B, student_dim) and teacher (B, teacher_dim) embeddings of the same images."""
        with torch.no_grad():
            teacher = self.teacher(images)
        return self.student(images), teacher


def _check(encoder: Encoder, view_size: int) -> None:
    """Raises where an encoder does not give one embedding for a view."""
    encoder.check_images(view_size)
    if encoder.output == "patch_tokens":
        raise UserError(
            f"{encoder.provenance.source} is asked for patch tokens, and distillation compares one "
            "embedding a tile. Expected `output: class_token` or class_and_mean_patch."
        )
