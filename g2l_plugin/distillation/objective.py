"""Projector, batch norms and loss: from two embeddings to one number."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from g2l_plugin.distillation.losses import DistillationLoss
from g2l_plugin.errors import UserError

_BATCH_NORM_EPS = 1e-4
"""As in arXiv 2303.11098."""


class Objective(nn.Module):
    """Linear projector from student to teacher width, batch norms without parameters, and a loss.

    The projector is discarded after training. Everything is computed in float32, under mixed
    precision too: fourth powers overflow half floats.

    Source: arXiv 2510.11176, which follows arXiv 2303.11098.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        loss: DistillationLoss,
        normalize_teacher: bool = True,
    ) -> None:
        """Initializes the objective.

        Args:
            student_dim: Width of the student's embeddings, D_s.
            teacher_dim: Width of the teacher's embeddings, D_t.
            loss: The loss between projected student and teacher embeddings.
            normalize_teacher: Whether the teacher's embeddings pass a batch norm too, as in the
                projector paper.
        """
        super().__init__()
        self.projector = nn.Linear(student_dim, teacher_dim)

        def batch_norm() -> nn.Module:
            return nn.BatchNorm1d(teacher_dim, eps=_BATCH_NORM_EPS, affine=False)

        self.student_norm = batch_norm()
        self.teacher_norm = batch_norm() if normalize_teacher else nn.Identity()
        self.loss = loss

    def project(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Brings both embeddings into the space of the loss.

        Args:
            student: Student embeddings (B, D_s).
            teacher: Teacher embeddings (B, D_t).

        Returns:
            Both as float32 (B, D_t).

        Raises:
            UserError: The batch norms have one tile to train on.
        """
        if self.training and len(student) < 2:
            raise UserError(
                "A batch has one tile, and batch norms need two. Raise BATCH_SIZE (and set "
                "`drop_last`), or use `projector: rotation` (PROJECTOR), which has none."
            )
        with torch.autocast(student.device.type, enabled=False):
            projected = self.student_norm(self.projector(student.float()))  # (B, D_s) -> (B, D_t)
            target = self.teacher_norm(teacher.float())  # (B, D_t)
            return projected, target

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Computes the loss, a scalar, of embeddings (B, D_s) and (B, D_t)."""
        projected, target = self.project(student, teacher)  # (B, D_t) each
        with torch.autocast(student.device.type, enabled=False):
            return self.loss(projected, target)  # ()


class CombinedObjective(nn.Module):
    """The weighted mean of the objectives of several teachers and several student widths.

    Each pair of teacher and width has its own projector, batch norms and loss. A width is a prefix
    of the student's embedding, which thus becomes an embedding itself (Matryoshka, arXiv
    2205.13147). One teacher and the full width alone are the paper's objective.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dims: Sequence[int],
        loss: DistillationLoss,
        normalize_teacher: bool = True,
        teacher_weights: Sequence[float] | None = None,
        widths: Sequence[int] = (),
    ) -> None:
        """Initializes the objective.

        Args:
            student_dim: Width of the student's embeddings, D_s.
            teacher_dims: Width of each teacher's embeddings, D_t.
            loss: The loss; every pair gets a copy.
            normalize_teacher: Whether the teachers' embeddings pass a batch norm too.
            teacher_weights: Weight of each teacher, any sum; None weights all equally.
            widths: Smaller widths of the student's embedding, to be usable alone.

        Raises:
            UserError: A width or a weight is out of range.
        """
        super().__init__()
        if any(not 0 < width < student_dim for width in widths) or len({*widths}) < len(widths):
            raise UserError(
                f"`widths` is {list(widths)}. Expected distinct numbers from 1 to below "
                f"{student_dim}, the width of the student's embedding, which is always included."
            )
        self.weights = shares(teacher_weights, len(teacher_dims))
        self.widths = [*sorted(widths), student_dim]
        self.parts = nn.ModuleList(
            nn.ModuleList(
                Objective(width, teacher_dim, copy.deepcopy(loss), normalize_teacher)
                for width in self.widths
            )
            for teacher_dim in teacher_dims
        )

    def project(
        self, student: torch.Tensor, teachers: Sequence[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Brings the full student embedding into the space of each teacher.

        Args:
            student: Student embeddings (B, D_s).
            teachers: Embeddings of each teacher, (B, D_t).

        Returns:
            For each teacher, student and teacher as float32 (B, D_t).
        """
        return [
            nested[-1].project(student, teacher)
            for nested, teacher in zip(self._nested(), teachers, strict=True)
        ]

    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the loss, a scalar, of embeddings (B, D_s) and one (B, D_t) per teacher."""
        total = student.new_zeros((), dtype=torch.float32)
        for nested, teacher, weight in zip(self._nested(), teachers, self.weights, strict=True):
            for objective, width in zip(nested, self.widths, strict=True):
                prefix = student[:, :width]
                loss = objective(prefix, teacher)  # (B, width), (B, D_t) -> ()
                total = total + loss * (weight / len(self.widths))
        return total

    def _nested(self) -> list[list[Objective]]:
        """The objectives by teacher and width."""
        return [list(nested) for nested in self.parts]  # type: ignore[call-overload]


def shares(weights: Sequence[float] | None, n_teachers: int) -> list[float]:
    """Weights of the teachers with the sum 1; all alike for None.

    Raises:
        UserError: There is not one weight above 0 per teacher.
    """
    weights = [1.0] * n_teachers if weights is None else list(weights)
    if len(weights) != n_teachers or min(weights) <= 0:
        raise UserError(
            f"`teacher_weights` is {weights} for {n_teachers} teachers. Expected one weight above "
            "0 per teacher."
        )
    return [weight / sum(weights) for weight in weights]
