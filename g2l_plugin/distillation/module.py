"""The distillation module: teachers, student, objective, and one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import optim
from torch.optim import lr_scheduler
from typing_extensions import override

from g2l_plugin import upstream
from g2l_plugin.distillation.beyond.patches import PatchObjective
from g2l_plugin.distillation.beyond.rotation import RotationObjective
from g2l_plugin.distillation.losses import DistillationLoss, LogSumLoss
from g2l_plugin.distillation.objective import CombinedObjective, shares
from g2l_plugin.distillation.running.micro_batches import in_micro_batches
from g2l_plugin.distillation.running.run_module import RunModule, check_optimizer
from g2l_plugin.distillation.running.run_state import tile_dataset
from g2l_plugin.distillation.running.sharded_teachers import leave_out_of_ddp, shard
from g2l_plugin.distillation.running.teacher_caches import TeacherCaches
from g2l_plugin.distillation.teachers import Teachers, embed, embed_with_grid
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.errors import UserError
from g2l_plugin.runs.record import describe_objective
from g2l_plugin.runs.validation import measure_alignment
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.views import AugmentedView, center_view

_FITTED_TILES = 4096
"""Tiles that a rotation is fitted to: some for each feature of a ViT-L."""


class DistillationModule(RunModule):
    """Distils one or more frozen teachers into a student, on one augmented view that all see.

    The encoders are built once, in `configure_model`: eva copies modules before it fits them, and
    memory must not hold a giga-scale teacher twice. Teachers are in no state dict and checkpoint.

    Each device computes the objective over the tiles of all devices. Batch norms and loss see what
    a single device with all these tiles would see, and the student receives the same gradient.

    Source: arXiv 2510.11176.

    Attributes:
        student: The student, from `configure_model` on.
        teachers: The teachers, from `configure_model` on.
        objective: Projectors, batch norms and losses, from `configure_model` on.
        patch_objective: Projectors of patch tokens, likewise, if `patch_weight` is not 0.
    """

    student: Encoder
    teachers: Teachers
    objective: CombinedObjective | RotationObjective

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
        freeze_batch_norm: bool | None = None,
        projector: Literal["linear", "rotation", "learned_rotation"] = "linear",
        patch_weight: float = 0.0,
        shard_teachers: bool = False,
    ) -> None:
        """Initializes the module; no model is loaded yet.

        Args:
            teacher: The source of the teacher.
            student: The source of the student's start weights.
            loss: The loss between projected student and teacher; None uses the log-sum loss.
            view: The augmentation; None uses the paper's.
            normalize_teacher: Whether the teacher's embeddings pass a batch norm before the loss.
            optimizer: The optimizer to use.
            lr_scheduler: The learning rate scheduler to use, stepped after every optimizer step.
            further_teachers: More teachers, each with its own projector.
            teacher_weights: Weight of each teacher in the loss; None weights all equally.
            widths: Smaller widths of the student's embedding to distil too (Matryoshka).
            micro_batch_size: Tiles per forward pass of an encoder; None passes all. Batch norms and
                loss still see the whole batch: the student's forward pass is computed twice, and
                memory holds one micro-batch.
            compile: Whether to compile the encoders (`torch.compile`).
            teacher_cache: Folder that keeps the teachers' embeddings. A run with the same teacher,
                tiles and views reads them instead of computing them. The view needs a fixed number
                of views (`n_views`). None computes all.
            freeze_batch_norm: Whether batch norms of the student use the statistics of its start,
                and not those of each batch. None does so if the start is pretrained: the
                statistics of a batch would make another network of it. Vision transformers have no
                batch norm.
            projector: What brings both embeddings together: `linear` is the paper's projector with
                batch norms; `rotation` and `learned_rotation` are `RotationObjective`'s.
            patch_weight: Weight of a `PatchObjective` beside the loss; 0 for none.
            shard_teachers: Whether each of several devices keeps only a part of the teachers'
                weights while it trains, for teachers that fill a device's memory. Each step then
                waits for the weights of the others. `compile` compiles the student alone.

        Raises:
            UserError: `micro_batch_size` is below 1, a weight below 0, a cache is set without
                `n_views`, with `patch_weight` or with `shard_teachers`, a setting of the linear
                projector with a rotation, or the optimizer or its schedule cannot be made.
        """
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise UserError(f"`micro_batch_size` is {micro_batch_size}. Expected at least 1.")
        self.teacher_sources = [teacher, *(further_teachers or [])]
        self.student_source = student
        self.loss = loss or LogSumLoss()
        self.view = view or AugmentedView()
        self.normalize_teacher = normalize_teacher
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.teacher_weights = teacher_weights
        self.widths = widths or []
        self.micro_batch_size = micro_batch_size
        self.compile_encoders = compile
        self.teacher_cache = teacher_cache
        self.freeze_batch_norm = freeze_batch_norm
        self.projector = projector
        self.patch_weight = patch_weight
        self.shard_teachers = shard_teachers
        if patch_weight < 0:
            raise UserError(f"`patch_weight` is {patch_weight}. Expected at least 0.")
        if patch_weight and teacher_cache is not None:
            raise UserError(
                "`teacher_cache` keeps embeddings, and no patch tokens, which `patch_weight` "
                "needs. Set one of them to null or 0."
            )
        if shard_teachers and teacher_cache is not None:
            raise UserError(
                "With `shard_teachers` (SHARD_TEACHERS) the devices use the teachers together, but "
                "with `teacher_cache` each where its own tiles are missing. Set one of them."
            )
        if student.dtype == "float8":
            raise UserError("A student in float8 cannot be trained. Set its `dtype` to float32.")
        if shard_teachers and any(source.dtype == "float8" for source in self.teacher_sources):
            raise UserError(
                "Weights in float8 cannot be divided between devices. Set TEACHER_DTYPE to "
                "bfloat16, or SHARD_TEACHERS to false."
            )
        if projector != "linear" and (self.widths or not normalize_teacher):
            raise UserError(
                "`widths` and `normalize_teacher: false` are settings of `projector: linear`. "
                "Remove them, or set it."
            )
        if teacher_cache is not None and self.view.n_views is None:
            raise UserError(
                "`teacher_cache` is set, but every epoch makes new views: nothing would be read "
                "again. Set the view's `n_views` (N_VIEWS) to a number of views per tile."
            )
        check_optimizer(optimizer, lr_scheduler)
        # The state dict has no teacher; `RunState.load` checks the other weights.
        self.strict_loading = False
        self._caches: TeacherCaches | None = None
        # Tile numbers and embeddings of the batches of a validation, by student and teachers.
        self._validation: list[tuple[np.ndarray | None, torch.Tensor, list[torch.Tensor]]] = []
        # Teachers' embeddings of each batch: they are computed once in a run.
        self._validation_teachers: dict[tuple[int, int], list[torch.Tensor]] = {}

    @property
    def teacher(self) -> Encoder:
        """The first teacher."""
        return self.teachers.encoders[0]

    @property
    def _shards(self) -> bool:
        return self.shard_teachers and self.trainer.world_size > 1

    @property
    def loss_settled(self) -> bool:
        """Whether the loss of a step can be compared with those of later ones."""
        parts = self.objective.modules()
        return all(part.settled for part in parts if isinstance(part, DistillationLoss))

    @override
    def configure_model(self) -> None:
        if hasattr(self, "objective"):
            return
        # The student first: a wrong name is reported before gigabytes of teacher are read.
        student = self.student_source.load()
        student.check_views(self.view.size)
        if student.output != "class_token":
            raise UserError(
                f"The student's `output` is {student.output!r}. Expected class_token, the output "
                "of the published model. A teacher may use class_and_mean_patch."
            )
        # Before training, so that a network that cannot be published is reported now.
        self.run_state.network = timm_config(student)
        teachers = Teachers(self.teacher_sources)
        for teacher in teachers.encoders:
            teacher.check_views(self.view.size)
        self.student, self.teachers = student, teachers
        dims = [teacher.embedding_dim for teacher in teachers.encoders]
        if self.projector != "linear":
            how = (shares(self.teacher_weights, len(dims)), self.projector == "learned_rotation")
            self.objective = RotationObjective(student.embedding_dim, dims, self.loss, *how)
        else:
            self.objective = CombinedObjective(
                student.embedding_dim,
                dims,
                self.loss,
                self.normalize_teacher,
                self.teacher_weights,
                self.widths,
            )
        if self.patch_weight:
            self.patch_objective = PatchObjective(
                student.grid_dim(self.view.size),
                [teacher.grid_dim(self.view.size) for teacher in teachers.encoders],
            )
        frozen = self.freeze_batch_norm
        student.freeze_batch_norm = student.provenance.pretrained if frozen is None else frozen
        student.train(self.training)
        if self.shard_teachers:
            leave_out_of_ddp(self, "teachers")

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Embeds images in [0, 1] (B, 3, H, W) with the student, (B, D_s)."""
        return self.student(tensor)

    @override
    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        batch = TileBatch.of(batch)
        views = self._make_views(batch)  # (B, 3, H, W) in [0, 1]
        # Counted here and not after the batch: a checkpoint is written before that.
        self.run_state.tiles_seen += len(views) * self.trainer.world_size
        patch_loss: torch.Tensor | float = 0.0
        if self.patch_weight:
            student, grid = self._embed_with_student(views, True)  # (B, D_s), (B, C_s, H, W)
            pairs = [
                embed_with_grid(teacher, views, self.micro_batch_size)
                for teacher in self.teachers.encoders
            ]
            teachers = [pair.embedding for pair in pairs]  # (B, D_t) per teacher
            patch_loss = self.patch_objective(grid, [pair.grid for pair in pairs])  # ()
        else:
            teachers = self._embed_with_teachers(views, batch)  # (B, D_t) per teacher
            (student,) = self._embed_with_student(views)  # (B, D_s)
        loss = self.objective(  # ()
            self.gather_rows(student),  # (devices * B, D_s)
            [self.gather_rows(teacher) for teacher in teachers],  # (devices * B, D_t)
        )
        loss = loss + self.patch_weight * patch_loss
        self.step_sync.exchange(self.global_step, loss, self.mean_over_devices)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self._log_step()
        return {"loss": loss}

    @override
    def on_validation_epoch_start(self) -> None:
        self._validation.clear()  # of a validation that was interrupted

    @override
    def validation_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> STEP_OUTPUT:
        batch = TileBatch.of(batch)
        views = center_view(batch.tiles, self.view.size)  # (B, 3, H, W)
        place = (dataloader_idx, batch_idx)
        with torch.compiler.set_stance(
            "force_eager"
        ):  # few graphs are kept; these have other sizes
            if place not in self._validation_teachers:
                self._validation_teachers[place] = self.teachers(views, self.micro_batch_size)
            teachers = self._validation_teachers[place]  # (B, D_t) per teacher
            (student,) = self._embed_with_student(views)  # (B, D_s)
        self._validation.append((batch.numbers, student, teachers))
        return None

    @override
    def on_validation_epoch_end(self) -> None:
        batches, students, teachers = zip(*self._validation, strict=True)
        self._validation.clear()
        parts = [torch.cat(part) for part in (students, *zip(*teachers, strict=True))]
        (student, *targets), numbers = self.gather_tiles(parts, batches)  # (N, D) each, (N,)
        patients = None
        if (dataset := tile_dataset(self.trainer, "val")) is not None and numbers is not None:
            patients = dataset.patients(numbers)  # (N,)
        projected = self.objective.project(student, targets)  # (N, D_t) pairs
        alignment = measure_alignment(student, targets, projected, patients)
        self.log_dict({name: torch.tensor(value) for name, value in alignment.values.items()})
        self.run_state.validated(self.global_step, len(student), patients, alignment)

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if self._shards:  # now, because the first device alone evaluates before
            for teacher in self.teachers.encoders:
                shard(teacher)
        if self.global_step > 0:
            return
        upstream.validate_within_fit(self.trainer)  # the start, to compare with
        if isinstance(self.objective, RotationObjective):  # later: batch norms see its tiles
            self._fit_rotation(self.objective)

    @override
    def on_fit_start(self) -> None:
        encoders = [self.student, *self.teachers.encoders]
        objective = describe_objective(
            self.loss,
            self.projector,
            self.normalize_teacher,
            self.patch_weight,
            len(self.teacher_sources),
        )
        self.run_state.begin(encoders, self.view.size, objective, self.widths)
        if self.compile_encoders:  # in place, after their FLOPs were counted
            for encoder in encoders[:1] if self._shards else encoders:
                encoder.compile()
        if self.teacher_cache is not None:
            precision = f"{self.trainer.precision}, {self.device.type}"
            precision += ", compiled" * self.compile_encoders
            self._caches = TeacherCaches(
                Path(self.teacher_cache),
                self.teacher_sources,
                self.teachers.encoders,
                self.view.settings(),
                precision,
                tile_dataset(self.trainer),
            )

    @override
    def on_train_epoch_start(self) -> None:
        if self._caches is not None:
            self._caches.refresh()

    @override
    def on_train_end(self) -> None:
        if self._caches is not None:
            self._caches.flush()
        if self.run_state.alignment.get("step") != self.global_step:
            upstream.validate_within_fit(self.trainer)

    @override
    def on_fit_end(self) -> None:
        self._validation_teachers.clear()  # later validations may be of other tiles

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._caches is not None:
            self._caches.flush()  # a run that resumes here does not compute these again
        self.run_state.save(checkpoint, self.trainer, self.step_sync)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = upstream.attached_trainer(self)
        teachers = self.teachers.encoders
        self.run_state.load(checkpoint, self.state_dict(), teachers, trainer, self.step_sync)

    @torch.no_grad()
    def _fit_rotation(self, objective: RotationObjective) -> None:
        """Fits the rotation to views of some training tiles."""
        students: list[torch.Tensor] = []
        teachers = []
        for batch in self.some_batches(_FITTED_TILES, "Fitting the rotation"):
            views = self._make_views(batch)  # (B, 3, H, W)
            with torch.compiler.set_stance("force_eager"):
                teachers.append(self._embed_with_teachers(views, batch))  # (B, D_t) per teacher
                students.extend(self._embed_with_student(views))  # (B, D_s)
        objective.fit(
            self.gather_rows(torch.cat(students)),
            [self.gather_rows(torch.cat(parts)) for parts in zip(*teachers, strict=True)],
            self.student.provenance.pretrained,
        )
        self.share(objective)

    def _log_step(self) -> None:
        group = self.optimizers().param_groups[0]
        self.log_from_host("train/lr", group["lr"])
        self.log_from_host("train/weight_decay", group["weight_decay"])
        if self.step_sync.last is not None:
            self.log_from_host("train/loss", self.step_sync.last.loss)

    def _make_views(self, batch: TileBatch) -> torch.Tensor:
        """Augmented views (B, 3, H, W) in [0, 1] of the tiles of a batch."""
        # Seeded by what a checkpoint keeps: dropout, and views of tiles without a number, are the
        # same as in an uninterrupted run, and differ between the devices.
        place = (self.view.seed, self.run_state.tiles_seen, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
        return self.view(batch.tiles, batch.numbers, self.view.number(batch.epoch))

    def _embed_with_teachers(self, views: torch.Tensor, batch: TileBatch) -> list[torch.Tensor]:
        """Embeddings (B, D_t) of each teacher, from the caches as far as they hold them."""
        if self._caches is None:
            return self.teachers(views, self.micro_batch_size)
        number = self.view.number(batch.epoch)
        return self._caches.embed(
            views,
            batch,
            number,
            lambda teacher, missing: embed(teacher, missing, self.micro_batch_size),
        )

    def _embed_with_student(
        self, views: torch.Tensor, with_grid: bool = False
    ) -> Sequence[torch.Tensor]:
        """Embeddings (B, D_s), and grids (B, C_s, H, W), of views (B, 3, H, W), with a gradient."""

        def embed(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.student(part, True) if with_grid else (self.student(part),)

        return in_micro_batches(embed, views, self.micro_batch_size)
