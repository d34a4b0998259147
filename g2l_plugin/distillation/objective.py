"""Projector, batch norms and loss: everything between two embeddings and one number."""

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
    """Linear projector from student to teacher width, batch norm on both sides, and a loss.

    The projector is thrown away after training. The batch norms have no affine parameters. All of
    it is computed in float32 also under mixed precision: fourth powers overflow half floats.

    Source: arXiv 2510.11176, on arXiv 2303.11098.
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
            student_dim: Width of the student's embeddings.
            teacher_dim: Width of the teacher's embeddings.
            loss: The loss between projected student and teacher embeddings.
            normalize_teacher: Whether the teacher's embeddings pass a batch norm too, as in the
                projector paper; otherwise they are left as they are.
        """
        super().__init__()
        self.projector = nn.Linear(student_dim, teacher_dim)
        self.student_norm = nn.BatchNorm1d(teacher_dim, eps=_BATCH_NORM_EPS, affine=False)
        self.teacher_norm = (
            nn.BatchNorm1d(teacher_dim, eps=_BATCH_NORM_EPS, affine=False)
            if normalize_teacher
            else nn.Identity()
        )
        self.loss = loss

    def project(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Brings both embeddings into the space where they are compared.

        Args:
            student: Student embeddings (B, student_dim).
            teacher: Teacher embeddings (B, teacher_dim).

        Returns:
            Both as float32 (B, teacher_dim).
        """
        with torch.autocast(student.device.type, enabled=False):
            return (
                self.student_norm(self.projector(student.float())),
                self.teacher_norm(teacher.float()),
            )

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Computes the loss, a scalar, from embeddings (B, student_dim) and (B, teacher_dim)."""
        projected, target = self.project(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            return self.loss(projected, target)


class CombinedObjective(nn.Module):
    """The mean of the objectives of several teachers and of several widths of the student.

    Each teacher has its weight, and each pair of teacher and width its own projector, batch norms
    and loss. A width is a prefix of the student's embedding, which so becomes an embedding of its
    own (Matryoshka, arXiv 2205.13147). One teacher and no further width is the paper's objective.
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
            student_dim: Width of the student's embeddings.
            teacher_dims: Width of each teacher's embeddings.
            loss: The loss; every pair has a copy.
            normalize_teacher: Whether the teachers' embeddings pass a batch norm too.
            teacher_weights: Weight of each teacher, of any sum; None gives all the same.
            widths: Smaller widths of the student's embedding, to be used by themselves too.

        Raises:
            UserError: A width or a weight makes no sense.
        """
        super().__init__()
        weights = [1.0] * len(teacher_dims) if teacher_weights is None else list(teacher_weights)
        if len(weights) != len(teacher_dims) or min(weights) <= 0:
            raise UserError(
                f"`teacher_weights` is {weights}, and there are {len(teacher_dims)} teachers. "
                "Expected one weight above 0 for each."
            )
        if any(not 0 < width < student_dim for width in widths) or len({*widths}) < len(widths):
            raise UserError(
                f"`widths` is {list(widths)}. Expected different numbers below the width of the "
                f"student's embedding, {student_dim}, which is always one of them."
            )
        self.weights = [weight / sum(weights) for weight in weights]
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
        """Brings the whole student embedding into the space of each teacher.

        Args:
            student: Student embeddings (B, student_dim).
            teachers: Embeddings of each teacher, (B, teacher_dim).

        Returns:
            Student and teacher as float32 (B, teacher_dim), for each teacher.
        """
        return [
            nested[-1].project(student, teacher)
            for nested, teacher in zip(self._nested(), teachers, strict=True)
        ]

    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the loss, a scalar, from embeddings (B, student_dim), (B, teacher_dim)s."""
        total = student.new_zeros((), dtype=torch.float32)
        for nested, teacher, weight in zip(self._nested(), teachers, self.weights, strict=True):
            for objective, width in zip(nested, self.widths, strict=True):
                loss = objective(student[:, :width], teacher)
                total = total + loss * (weight / len(self.widths))
        return total

    def _nested(self) -> list[list[Objective]]:
        """The objectives of each teacher, of each width."""
        return [list(nested) for nested in self.parts]  # type: ignore[call-overload]
