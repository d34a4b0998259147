"""What a run knows of itself: saved in every checkpoint, and checked when one is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from loguru import logger

from g2l_plugin.distillation.running.step_sync import StepSync
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.alignment import Estimate
from g2l_plugin.runs.outcome import find_decline
from g2l_plugin.runs.record import (
    KEY,
    EncoderRecord,
    RunRecord,
    describe_hardware,
    record_encoder,
)
from g2l_plugin.runs.validation import Alignment
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.patients import find_barcode, join_patients, list_patients

_LAST_STEP = "g2l_last_step"
_TILES: dict[Literal["train", "val"], str] = {"train": "g2l_tiles", "val": "g2l_val_tiles"}
_START = "g2l_start"
CONFIG_KEY = "g2l_config"
"""Key of the run's configuration in a checkpoint."""

_STEPS_TO_IMPROVE = 500
"""Steps after which a student should be closer to its teacher than its start was."""

_EXTRA_STATE = "_extra_state"  # may have any shape


class RunState:
    """What a run knows of itself.

    Attributes:
        network: The student's config.json, from which timm builds its network.
        tiles_seen: Tiles seen in training, on all devices.
        start: Figures of the first validation, before the first step; may be empty.
        alignment: Figures of the last validation, `tiles`, `patients` and `step`; may be empty.
        change: From start to the last validation: the difference of a figure, and the ends of its
            95 % interval (None if unknown).
        finished: Whether the training has ended.
        ending: What ended it before its last step; "" if nothing did.
        config: The submitted configuration; None outside of eva's command line.
        resumed: What was changed where the run was resumed, a line for each time.
    """

    def __init__(self) -> None:
        """Initializes the state of a new run."""
        self.network: dict[str, Any] = {}
        self.tiles_seen = 0
        self.start: dict[str, float] = {}
        self.alignment: dict[str, float] = {}
        self.change: dict[str, list[float | None]] = {}
        self.finished = False
        self.ending = ""
        self.config: dict[str, Any] | None = None
        self.resumed: tuple[str, ...] = ()
        self._resumed_objective: str | None = None
        self._encoders: list[EncoderRecord] = []
        self._seen_before: list[list[str]] = []
        self._objective = ""
        self._widths: tuple[int, ...] = ()
        self._seconds, self._since = 0.0, time.monotonic()
        self._start_estimates: dict[str, Estimate] = {}
        self._warned = False
        self._cohort: dict[str, Any] | None = None

    def begin(
        self, encoders: Sequence[Encoder], view_size: int, objective: str, widths: Sequence[int]
    ) -> None:
        """Records what is trained; runs each encoder once to count its FLOPs.

        Args:
            encoders: The student, then the teachers.
            view_size: Side of the views, in pixels.
            objective: The objective in words.
            widths: Smaller widths of the student's embedding that are distilled too.

        Raises:
            UserError: The resumed run has another objective.
        """
        if self._resumed_objective not in (None, objective):
            raise UserError(
                f"The run to resume has another objective: {self._resumed_objective!r}; now it is "
                f"{objective!r}. Resume with its own, or start a new run (RESUME=null)."
            )
        self._encoders = [record_encoder(encoder, view_size) for encoder in encoders]
        # What a start or a teacher has seen of them, the student has seen too.
        self._seen_before = [encoder.training_patients for encoder in encoders]
        self._objective, self._widths = objective, tuple(widths)
        self._since = time.monotonic()
        self._cohort = None

    def validated(
        self, step: int, n_tiles: int, patients: np.ndarray | None, alignment: Alignment
    ) -> None:
        """Records a validation; warns if the student is not better than its start.

        Args:
            step: Optimizer steps taken.
            n_tiles: Number of validation tiles.
            patients: Patient of each; None if unknown.
            alignment: What was found.
        """
        values = {name: value for name, value in alignment.values.items() if math.isfinite(value)}
        values |= {"step": step, "tiles": n_tiles}
        if patients is not None:
            values["patients"] = len(np.unique(patients))
        self.alignment = values
        if step == 0:
            self.start, self._start_estimates = values, alignment.estimates
        self.change = {
            name: _difference(estimate, self._start_estimates[name])
            for name, estimate in alignment.estimates.items()
            if name in self._start_estimates
        }
        decline = find_decline(self.start, self.alignment, self.change)
        if step >= _STEPS_TO_IMPROVE and decline is not None and not self._warned:
            self._warned = True
            logger.warning(
                f"After {step:,} steps the student is further from its teacher than at its start: "
                f"{decline}. Set a lower learning rate (LR_VALUE), or use the recipe for any "
                "start, configs/g2l_robust.yaml."
            )

    def record(self, trainer: pl.Trainer) -> RunRecord:
        """The record of the run, from `begin` on."""
        student, teacher, *further = self._encoders
        if self._cohort is None:  # once: ten million images take seconds
            self._cohort = _describe_cohort(trainer, self._seen_before)
        return RunRecord(
            teacher=teacher,
            student=student,
            network=self.network,
            objective=self._objective,
            finished=self.finished,
            ending=self.ending,
            step=trainer.global_step,
            tiles_seen=self.tiles_seen,
            seconds=self._seconds + time.monotonic() - self._since,
            hardware=describe_hardware(trainer.strategy.root_device, trainer.world_size),
            cohort=self._cohort,
            start=self.start,
            alignment=self.alignment,
            change=self.change,
            further_teachers=tuple(further),
            widths=self._widths,
            resumed=self.resumed,
        )

    def save(self, checkpoint: dict[str, Any], trainer: pl.Trainer, step_sync: StepSync) -> None:
        """Writes the state, the identity of the tiles and the last step into a checkpoint."""
        checkpoint[KEY] = self.record(trainer).to_dict()
        checkpoint[CONFIG_KEY] = self.config
        for split, key in _TILES.items():
            if (dataset := tile_dataset(trainer, split)) is not None:
                checkpoint[key] = dataset.fingerprint()
        checkpoint[_LAST_STEP] = step_sync.state_dict()
        checkpoint[_START] = {
            name: estimate.to_dict() for name, estimate in self._start_estimates.items()
        }

    def load(
        self,
        checkpoint: Mapping[str, Any],
        weights: Mapping[str, Any],
        teachers: Sequence[Encoder],
        trainer: pl.Trainer | None,
        step_sync: StepSync,
    ) -> None:
        """Restores the state from a checkpoint of the same run.

        Args:
            checkpoint: The checkpoint.
            weights: The state dict that its weights go into.
            teachers: The teachers.
            trainer: The trainer, with the tiles that are trained on and validated on.
            step_sync: What receives the last step.

        Raises:
            UserError: The checkpoint has other weights, another teacher or other tiles.
        """
        expected, given = _shapes(weights), _shapes(checkpoint["state_dict"])
        if expected != given or KEY not in checkpoint:
            raise UserError(
                f"The checkpoint belongs to another student or objective: it lacks "
                f"{len(expected - given)} weights and has {len(given - expected)} others. Resume "
                "with the configuration that wrote it."
            )
        record = checkpoint[KEY]
        recorded = [record["teacher"], *record.get("further_teachers", ())]
        for teacher, encoder in zip(recorded, teachers, strict=True):
            before, now = teacher["provenance"], encoder.provenance
            if before["sha256"] != now.sha256:
                raise UserError(
                    f"The checkpoint belongs to a run with another teacher: {before['source']}, "
                    f"sha256 {before['sha256']}; now {now.source}, {now.sha256}. Resume with its "
                    "teacher."
                )
        for split, key in _TILES.items():
            dataset = tile_dataset(trainer, split)
            if dataset is None or checkpoint.get(key) in (None, dataset.fingerprint()):
                continue
            raise UserError(
                f"The checkpoint belongs to a run on other tiles ({split}): its place among them, "
                "or its figures, have no meaning here. Resume with its slides and index, or start "
                "a new run (RESUME=null)."
            )
        step_sync.load_state_dict(checkpoint.get(_LAST_STEP))
        self._resumed_objective = record["objective"]
        self.resumed = (*record.get("resumed", ()), *self.resumed)
        self.tiles_seen, self._seconds = record["tiles_seen"], record["seconds"]
        self.start, self.alignment = dict(record["start"]), dict(record["alignment"])
        self.change = dict(record["change"])
        if self.finished:  # else it goes on, and may end otherwise
            self.ending = record["ending"]
        self._start_estimates = {
            name: Estimate.from_dict(values) for name, values in checkpoint[_START].items()
        }


def tile_dataset(
    trainer: pl.Trainer | None, split: Literal["train", "val"] = "train"
) -> TileDataset | None:
    """The tiles of a trainer's run; None if eva's data module has no `TileDataset` there."""
    datasets = getattr(getattr(trainer, "datamodule", None), "datasets", None)
    dataset = getattr(datasets, split, None)
    return dataset if isinstance(dataset, TileDataset) else None


def _describe_cohort(trainer: pl.Trainer, seen_before: Iterable[list[str]]) -> dict[str, Any]:
    """Counts the tiles that are trained on, and lists the patients that the student has seen.

    They are those of training and validation, and those of its start and its teachers.
    """
    train = tile_dataset(trainer)
    if train is None:
        return {}
    val = tile_dataset(trainer, "val")
    patients = train.known_patients() | (val.known_patients() if val is not None else set())
    return train.describe_cohort() | {
        "patients": join_patients(list_patients(patients), *seen_before),
        "patients_public": all(find_barcode(name) for name in patients if name),
    }


def _difference(after: Estimate, before: Estimate) -> list[float | None]:
    """The difference and both ends of its interval, None where unknown: JSON has no NaN."""
    if len(after.without) != len(before.without):  # other tiles
        return [None, None, None]
    change = after - before
    return [end if math.isfinite(end) else None for end in (change.value, *change.interval())]


def _shapes(state: Mapping[str, Any]) -> set[tuple[str, torch.Size | None]]:
    return {
        (name, getattr(value, "shape", None))
        for name, value in state.items()
        if not name.endswith(_EXTRA_STATE)
    }
