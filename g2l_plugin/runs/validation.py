"""What a validation finds: how alike student and teachers see tiles of held-out patients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from g2l_plugin.metrics.alignment import (
    Estimate,
    effective_rank,
    shared_neighbours,
    unbiased_cka,
)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How alike student and teachers see the validation tiles.

    Attributes:
        values: All figures by name, as they are logged: `val/cka` (unbiased linear CKA) and its
            interval, `val/shared_neighbours` (recall@10 of the nearest tiles) and its interval,
            `val/cosine` (of the projected embeddings), `val/effective_rank` of the student, and
            the teacher's. Those of further teachers end in `/teacher_2` and so on.
        estimates: CKA and shared neighbours with their values for each patient left out.
    """

    values: dict[str, float]
    estimates: dict[str, Estimate]


def measure_alignment(
    student: torch.Tensor,
    teachers: Sequence[torch.Tensor],
    projected: Sequence[tuple[torch.Tensor, torch.Tensor]],
    patients: np.ndarray | None,
) -> Alignment:
    """Compares the student's embeddings of the validation tiles with each teacher's.

    Args:
        student: Student embeddings (N, D_s).
        teachers: Embeddings of each teacher, (N, D_t).
        projected: Student and teacher in the space of each teacher's loss, (N, D_t) each.
        patients: Patient of each tile, (N,); None if unknown.
    """
    values = {"val/effective_rank": effective_rank(student)}
    estimates: dict[str, Estimate] = {}
    for number, (teacher, pair) in enumerate(zip(teachers, projected, strict=True)):
        suffix = f"/teacher_{number + 1}" if number else ""
        found = compare_embeddings(student, teacher, patients, suffix)
        values |= found.values
        estimates |= found.estimates
        values[f"val/cosine{suffix}"] = torch.cosine_similarity(*pair, dim=-1).mean().item()
        values[f"val/effective_rank_teacher{suffix}"] = effective_rank(teacher)
    return Alignment(values, estimates)


def compare_embeddings(
    student: torch.Tensor, teacher: torch.Tensor, patients: np.ndarray | None, suffix: str = ""
) -> Alignment:
    """Compares embeddings of the same tiles by CKA and shared neighbours, with intervals.

    Args:
        student: Student embeddings (N, D_s).
        teacher: Teacher embeddings (N, D_t).
        patients: Patient of each tile, (N,); None if unknown.
        suffix: End of the names of a further teacher.
    """
    values: dict[str, float] = {}
    estimates = {}
    for name, compare in (("cka", unbiased_cka), ("shared_neighbours", shared_neighbours)):
        estimate = compare(student, teacher, patients)
        low, high = estimate.interval()
        estimates[f"val/{name}{suffix}"] = estimate
        values |= {
            f"val/{name}{suffix}": estimate.value,
            f"val/{name}_low{suffix}": low,
            f"val/{name}_high{suffix}": high,
        }
    return Alignment(values, estimates)
