"""The distillation module: teacher, student, objective, one step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eva.core.models.modules import ModelModule
from eva.core.models.modules.typings import INPUT_BATCH
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import optim
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint as recompute
from typing_extensions import override

from g2l_plugin.distillation.agreement import Agreement
from g2l_plugin.distillation.data_wait import WaitClock
from g2l_plugin.distillation.losses import DistillationLoss, LogSumLoss
from g2l_plugin.distillation.objective import CombinedObjective
from g2l_plugin.distillation.record import (
    KEY,
    EncoderRecord,
    RunRecord,
    describe_hardware,
    describe_loss,
    record_encoder,
)
from g2l_plugin.distillation.teachers import Teachers
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import timm_config
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.cka import linear_cka
from g2l_plugin.slides.views import AugmentedView, center_view

_LAST_STEP = "g2l_last_step"
_TILES = "g2l_tiles"
_EXTRA = "_extra_state"  # of any shape


class DistillationModule(ModelModule):
    """Distils a frozen teacher, or several, into a student on one augmented view that all see.

    The encoders are built in `configure_model`, once: eva copies modules before it fits them, and a
    giga-scale teacher must not be held twice. Teachers are in no state dict and no checkpoint.

    On several devices every one computes the objective over the tiles of all: batch norms and loss
    see what one device with so many tiles would see, and the student gets the same gradient.

    Source: arXiv 2510.11176.

    Attributes:
        agreement: What all devices know of the last step.
        stop_wished: Set to ask all devices to end.
        save_wished: Set to ask all devices for a checkpoint.
        wait_clock: Measures how long the device waits for data, where that is wanted.
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
        further_teachers: list[EncoderSource] | None = None,
        teacher_weights: list[float] | None = None,
        widths: list[int] | None = None,
        micro_batch_size: int | None = None,
        compile: bool = False,
        teacher_cache: str | None = None,
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
            further_teachers: Teachers beside the first, each with a projector of its own.
            teacher_weights: Weight of each teacher in the loss; None gives all the same.
            widths: Smaller widths of the student's embedding that are distilled too (Matryoshka).
            micro_batch_size: Tiles that go through the encoders at once; None takes all. Batch
                norms and loss see the whole batch all the same: the student's forward pass is done
                twice instead, and memory is that of the micro-batch.
            compile: Whether to compile the encoders (`torch.compile`).
            teacher_cache: Folder where the teachers' embeddings are kept and, where a run with the
                same teacher, tiles and views has left them, taken from. The views must be of a
                fixed number (`n_views`). None computes them.

        Raises:
            UserError: `micro_batch_size` is below 1, or a cache is asked for and views are not of a
                fixed number.
        """
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise UserError(f"`micro_batch_size` is {micro_batch_size}. Expected at least 1.")
        self.teacher_sources = [teacher, *(further_teachers or [])]
        self.teacher_weights = teacher_weights
        self.widths = widths or []
        self.micro_batch_size = micro_batch_size
        self.compile_encoders = compile
        self.student_source = student
        self.loss = loss or LogSumLoss()
        self.view = view or AugmentedView()
        if teacher_cache is not None and self.view.n_views is None:
            raise UserError(
                "`teacher_cache` is set, and every epoch has views of its own: nothing would be "
                "read again. Set the view's `n_views` (N_VIEWS) to a number of views for each tile."
            )
        self.teacher_cache = teacher_cache
        self.normalize_teacher = normalize_teacher
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        # Checked by hand in `on_load_checkpoint`: the teacher is always missing.
        self.strict_loading = False

        self.teachers: Teachers = None  # type: ignore[assignment]
        self.student: Encoder = None  # type: ignore[assignment]
        self.objective: CombinedObjective = None  # type: ignore[assignment]
        self.agreement = Agreement()
        self.stop_wished = False
        self.save_wished = False
        self.wait_clock: WaitClock | None = None
        self.tiles_seen = 0
        self.finished = False
        self.alignment: dict[str, float] = {}
        self._network: dict[str, Any] = {}
        self._encoders: tuple[EncoderRecord, ...] | None = None
        self._seconds, self._since = 0.0, time.monotonic()
        self._validation_embeddings: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    @property
    def teacher(self) -> Encoder:
        """The first teacher; None before `configure_model`."""
        return self.teachers.encoders[0] if self.teachers is not None else None  # type: ignore

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
        teachers = Teachers(self.teacher_sources)
        for teacher in teachers.encoders:
            _check(teacher, self.view.size)
        self.teachers = teachers
        self.objective = CombinedObjective(
            self.student.embedding_dim,
            [teacher.embedding_dim for teacher in teachers.encoders],
            self.loss,
            self.normalize_teacher,
            self.teacher_weights,
            self.widths,
        )

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Embeds images in [0, 1] (B, 3, H, W) with the student, (B, D)."""
        return self.student(tensor)

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.wait_clock is not None and self.training:
            self.wait_clock.batch_arrived()
        return batch

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.wait_clock is not None:  # after the callbacks, which may have saved a checkpoint
            self.wait_clock.start()

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> INPUT_BATCH:
        batch = INPUT_BATCH(batch) if isinstance(batch, torch.Tensor) else INPUT_BATCH(*batch)
        if not self.training:
            return batch._replace(data=center_view(batch.data, self.view.size))
        # Seeded by what a checkpoint keeps: dropout, and views of tiles without a number, are those
        # of an uninterrupted run, and differ between the devices.
        place = (self.view.seed, self.tiles_seen, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
        metadata = batch.metadata or {}
        number = self.view.number(metadata.get("epoch", 0))
        return batch._replace(data=self.view(batch.data, metadata.get("tile"), number))

    @override
    def training_step(self, batch: INPUT_BATCH, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        # Counted here and not after the batch: a checkpoint is written before that.
        self.tiles_seen += len(batch.data) * self.trainer.world_size
        metadata = batch.metadata or {}
        teachers = self.teachers.embed_tiles(
            batch.data,
            metadata.get("tile"),
            self.view.number(metadata.get("epoch", 0)),
            self.micro_batch_size,
            metadata.get("stands_in"),
        )
        student = self._embed_student(batch.data)
        loss = self.objective(
            self._gather_rows(student), [self._gather_rows(teacher) for teacher in teachers]
        )
        self.agreement.exchange(
            self.global_step, loss, self.stop_wished, self.save_wished, self._mean_over_devices
        )
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            group = self.optimizers().param_groups[0]
            self.log_from_host("train/lr", group["lr"])
            self.log_from_host("train/weight_decay", group["weight_decay"])
            if self.agreement.known is not None:
                self.log_from_host("train/loss", self.agreement.known.loss)
        return {"loss": loss}

    def log_from_host(self, name: str, value: float) -> None:
        """Logs a value that the host knows: one of the device, or sent to it, is waited for."""
        self.log(name, torch.tensor(value), rank_zero_only=True)

    @override
    def validation_step(self, batch: INPUT_BATCH, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        teachers = self.teachers(batch.data, self.micro_batch_size)
        self._validation_embeddings.append((self._embed_student(batch.data), teachers))
        return None

    @override
    def on_validation_epoch_end(self) -> None:
        students, teachers = zip(*self._validation_embeddings, strict=True)
        self._validation_embeddings.clear()
        student = self._gather_rows(torch.cat(students))
        targets = [self._gather_rows(torch.cat(parts)) for parts in zip(*teachers, strict=True)]
        metrics = {}
        pairs = zip(targets, self.objective.project(student, targets), strict=True)
        for number, (teacher, (projected, target)) in enumerate(pairs):
            suffix = f"/teacher_{number + 1}" if number else ""
            cosine = torch.cosine_similarity(projected, target, dim=-1).mean()
            metrics[f"val/cosine{suffix}"] = cosine
            metrics[f"val/cka{suffix}"] = linear_cka(student.float(), teacher.float())
        self.log_dict(metrics)
        self.alignment = {name: float(value) for name, value in metrics.items()}
        self.alignment["step"] = self.trainer.global_step

    @override
    def on_fit_start(self) -> None:
        size = self.view.size
        encoders = [self.student, *self.teachers.encoders]
        self._encoders = tuple(record_encoder(encoder, size) for encoder in encoders)
        if self.compile_encoders:  # in place, after their FLOPs were counted
            for encoder in encoders:
                encoder.compile()
        if self.teacher_cache is not None:
            self._open_caches(self.teacher_cache)
        self._since = time.monotonic()

    @override
    def on_train_epoch_start(self) -> None:
        self.teachers.refresh_caches()

    @override
    def on_train_end(self) -> None:
        self.teachers.flush_caches()

    @override
    def on_train_start(self) -> None:
        steps = self.all_gather(torch.tensor(self.global_step, device=self.device))
        if (steps != self.global_step).any():
            raise UserError(
                f"The devices resume at different steps: {sorted(set(steps.flatten().tolist()))}. "
                "Expected a folder of runs that all machines share (OUTPUT_ROOT)."
            )
        if self.finished:  # only what comes after is left to do
            self.trainer.should_stop = True

    def record(self) -> RunRecord:
        """What the run knows of itself, from the start of the fit on."""
        assert self._encoders is not None
        student, teacher, *further = self._encoders
        describe = getattr(self._train_tiles(), "describe_cohort", dict)
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
            further_teachers=tuple(further),
            widths=tuple(self.widths),
        )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.teachers.flush_caches()  # what a run that goes on from here will not compute again
        checkpoint[KEY] = self.record().to_dict()
        if (fingerprint := getattr(self._train_tiles(), "fingerprint", None)) is not None:
            checkpoint[_TILES] = fingerprint()
        checkpoint[_LAST_STEP] = self.agreement.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected, given = (
            {
                (name, getattr(value, "shape", None))
                for name, value in state.items()
                if not name.endswith(_EXTRA)
            }
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        if expected != given or KEY not in checkpoint:
            raise UserError(
                f"The checkpoint is of another student or objective: {len(expected - given)} "
                f"weights are missing and {len(given - expected)} unknown. Resume with the "
                "configuration that wrote it."
            )
        record = checkpoint[KEY]
        teachers = [record["teacher"], *record.get("further_teachers", ())]
        for teacher, encoder in zip(teachers, self.teachers.encoders, strict=True):
            had, has = teacher["provenance"], encoder.provenance
            if had["sha256"] != has.sha256:
                raise UserError(
                    f"The checkpoint is of a run with another teacher: {had['source']} of sha256 "
                    f"{had['sha256']}, and now {has.source} of {has.sha256}. Resume with its "
                    "teacher."
                )
        fingerprint = getattr(self._train_tiles(), "fingerprint", None)
        if fingerprint is not None and checkpoint.get(_TILES, fingerprint()) != fingerprint():
            raise UserError(
                "The checkpoint is of a run on other tiles: its place among them means nothing "
                "here. Resume with its slides and index, or start anew (RESUME=null)."
            )
        self.agreement.load_state_dict(checkpoint.get(_LAST_STEP))
        self.tiles_seen, self._seconds = record["tiles_seen"], record["seconds"]
        self.alignment = dict(record["alignment"])

    def _embed_student(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, student_dim) of images, with a gradient."""
        parts = images.split(self.micro_batch_size or len(images))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self.student(part) for part in parts])
        return torch.cat([recompute(self.student, part, use_reentrant=False) for part in parts])

    def _open_caches(self, root: str) -> None:
        tiles = self._train_tiles()
        fingerprint = getattr(tiles, "fingerprint", None)
        if fingerprint is None:
            raise UserError(
                f"`teacher_cache` needs tiles that have numbers, and trains on {type(tiles)}. Use "
                "g2l_plugin.TileDataModule, or set it (TEACHER_CACHE) to null."
            )
        self.teachers.open_caches(
            Path(root),
            self.view.settings(),
            f"{self.trainer.precision}, {self.device.type}{', compiled' * self.compile_encoders}",
            fingerprint(),
            len(tiles),
        )

    def _train_tiles(self) -> Any:
        """The dataset that is trained on; None where it is not eva's data module's."""
        datasets = getattr(getattr(self._trainer, "datamodule", None), "datasets", None)
        return getattr(datasets, "train", None)

    def _mean_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        """Averages values in place; Lightning's own has a barrier, which waits for the device."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.trainer.world_size
        return values

    def _gather_rows(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings of all devices, (devices * B, D), through which gradients flow back."""
        return self.all_gather(embeddings, sync_grads=True).flatten(0, -2)


def _check(encoder: Encoder, view_size: int) -> None:
    """Raises where an encoder does not give one embedding for a view."""
    encoder.check_images(view_size)
    if encoder.output == "patch_tokens":
        raise UserError(
            f"{encoder.provenance.source} is asked for patch tokens, and distillation compares one "
            "embedding a tile. Expected `output: class_token` or class_and_mean_patch."
        )
