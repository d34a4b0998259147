"""Which evaluated patients a student was distilled on, and its metrics without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from loguru import logger

from g2l_plugin.metrics.embeddings import Embeddings, take
from g2l_plugin.metrics.metric import EmbeddingMetric, compute_all
from g2l_plugin.slides.patients import UNKNOWN, find_barcode, hash_patient

_ALL_SHARED = "all patients were in the student's training cohort"


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Evaluated patients that a student was distilled on, and the metrics without them.

    Attributes:
        n_patients: Number of evaluated patients.
        n_shared: How many of them are in the student's cohort, to train on or to validate.
        at_least: Whether it may be more, because patients of the cohort are unknown.
        by_name: Whether some have no TCGA barcode: another cohort may use their names for others.
        values: Values without the shared patients; empty if none is shared.
        undefined: Names of the values that are undefined without them, with the reason.
    """

    n_patients: int
    n_shared: int
    at_least: bool = False
    by_name: bool = False
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def count(self) -> str:
        """How many are shared: `12 of 80`."""
        return f"{'at least ' * self.at_least}{self.n_shared:,} of {self.n_patients:,}"

    def describe(self) -> str:
        """Says how many patients are shared, as a sentence without its full stop."""
        count = self.count[0].upper() + self.count[1:]
        if self.by_name:
            return f"{count} patients have the names of patients in the student's training cohort"
        return f"{count} patients were in the student's training cohort"


def compute_without(
    metrics: Sequence[EmbeddingMetric],
    train: Embeddings,
    evaluated: Embeddings,
    training_patients: Sequence[str] | None,
) -> Overlap | None:
    """Counts the evaluated patients that a student was distilled on, and leaves them out.

    Args:
        metrics: The metrics to compute without them.
        train: Embeddings of the training split, which stays as it is; `evaluated` itself if the
            metrics are of all splits together.
        evaluated: Embeddings of the evaluated split.
        training_patients: The student's, from `list_patients`; None if unknown.

    Returns:
        None if it is not known whether patients are shared: the patients of the student, some of
        them, or those of the task are unknown.
    """
    if training_patients is None or "patient" not in evaluated.groups:
        return None
    patients, of_tile = np.unique(evaluated.groups["patient"], return_inverse=True)
    hashes = np.array([hash_patient(patient) for patient in patients])
    shared = np.isin(hashes, list(training_patients))
    at_least = UNKNOWN in training_patients
    if at_least and not shared.any():
        return None
    overlap = Overlap(
        len(np.unique(hashes)),
        len(np.unique(hashes[shared])),
        at_least,
        not all(find_barcode(patient) for patient in patients[shared]),
    )
    if not overlap.n_shared:
        return overlap
    logger.warning(f"{overlap.describe()}. The metrics are computed again without them.")
    kept = np.flatnonzero(~shared[of_tile])
    if not len(kept):
        names = [name for metric in metrics for name in metric.names]
        return dataclasses.replace(overlap, undefined=dict.fromkeys(names, _ALL_SHARED))
    # The fingerprint is of the split that they are from: CKA takes the same tiles of its teacher.
    rest = dataclasses.replace(take(evaluated, kept), images=evaluated.images)
    result = compute_all(metrics, rest if train is evaluated else train, rest)
    return dataclasses.replace(overlap, values=result.values, undefined=result.undefined)


def overlaps_to_dict(overlaps: dict[str, Overlap | None]) -> dict[str, Any]:
    """Plain values of the overlaps that are known, for JSON."""
    return {name: dataclasses.asdict(own) for name, own in overlaps.items() if own is not None}
