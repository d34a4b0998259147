"""Projector, batch norms and loss: everything between two embeddings and one number."""

from __future__ import annotations

import torch
from torch import nn

from g2l_plugin.distillation.losses import DistillationLoss

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
