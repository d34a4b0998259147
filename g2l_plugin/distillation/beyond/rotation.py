"""The student learns its teachers' embeddings themselves, rotated into its own space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from typing_extensions import override

from g2l_plugin.distillation.losses import DistillationLoss
from g2l_plugin.errors import UserError


class RotationObjective(nn.Module):
    """A rotation between student and teacher in place of the projector.

    A projector that trains decides what of the student is compared: it may rescale and hide
    directions, so the embedding that is published need not resemble the teacher's even where the
    loss is small. A rotation keeps distances and angles. It is the solution of the orthogonal
    Procrustes problem (Schoenemann 1966, https://doi.org/10.1007/BF02289451) on some training
    tiles: the student starts as close to its teacher as it can be without a step.

    It is fixed, or trains with the student and is held near a rotation: the mean squared distance
    of its Gram matrix from the identity, a feature, is added to the loss.

    A loss of directions alone (cosine, KL) would leave the length of embeddings free, and that of a
    few tiles can become many times that of others, which decides distances (docs/study.md). So the
    mean squared difference in length, as a share of the teacher's mean squared length, is added.

    The teacher's features are centred and divided by one number, so that they keep their
    proportions. Several teachers are joined. Nothing depends on the batch.
    """

    rotation: torch.Tensor
    student_mean: torch.Tensor
    student_scale: torch.Tensor
    teacher_mean: torch.Tensor
    teacher_scale: torch.Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dims: Sequence[int],
        loss: DistillationLoss,
        weights: Sequence[float],
        learned: bool = False,
    ) -> None:
        """Initializes the objective; `fit` must follow.

        Args:
            student_dim: Width of the student's embeddings, D_s.
            teacher_dims: Width of each teacher's embeddings; their sum is D_t.
            loss: The loss.
            weights: Share of each teacher in the variance of their joined embedding; sum 1.
            learned: Whether the rotation trains.
        """
        super().__init__()
        self.loss = loss
        self.weights = list(weights)
        self.teacher_dims = list(teacher_dims)
        total = sum(teacher_dims)
        self.learned = learned
        start = torch.eye(total, student_dim)
        if learned:
            self.rotation = nn.Parameter(start)
        else:
            self.register_buffer("rotation", start)
        self.register_buffer("student_mean", torch.zeros(student_dim))
        self.register_buffer("student_scale", torch.ones(()))
        self.register_buffer("teacher_mean", torch.zeros(total))
        self.register_buffer("teacher_scale", torch.ones(total))

    @torch.no_grad()
    def fit(
        self, student: torch.Tensor, teachers: Sequence[torch.Tensor], pretrained: bool = True
    ) -> None:
        """Chooses rotation and scales.

        Args:
            student: Embeddings of training tiles by the student's start, (N, D_s).
            teachers: Embeddings of the same tiles by each teacher, (N, D_t).
            pretrained: Whether the student's start is. If so, its scale is kept. Embeddings by
                random weights hardly vary, so their scale would let each step change thousands of
                times as much: their student learns the teacher's embedding at a mean variance of 1.

        Raises:
            UserError: All embeddings of an encoder are equal.
        """
        x, parts = student.double(), [teacher.double() for teacher in teachers]
        variances = [part.var(0, correction=0).sum() for part in (x, *parts)]
        if min(variances) <= 0:
            raise UserError(
                "The student or a teacher gives the same embedding to all training tiles. Check "
                "its weights and its normalisation."
            )
        total = self.rotation.shape[0]
        scales = [
            (weight * total / variance).sqrt().expand(dim)
            for weight, variance, dim in zip(
                self.weights, variances[1:], self.teacher_dims, strict=True
            )
        ]
        joined, scale = torch.cat(parts, dim=1), torch.cat(scales)  # (N, D_t), (D_t,)
        self.student_mean.copy_(x.mean(0))
        self.teacher_mean.copy_(joined.mean(0))
        self.teacher_scale.copy_(scale)
        x = x - x.mean(0)
        y = (joined - joined.mean(0)) * scale
        u, singular, vh = torch.linalg.svd(y.T @ x, full_matrices=False)
        self.rotation.copy_(u @ vh)
        if pretrained:
            self.student_scale.copy_(singular.sum() / x.square().sum())  # least squares

    def project(
        self, student: torch.Tensor, teachers: Sequence[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Brings the student's embedding into the space of each teacher.

        Args:
            student: Student embeddings (B, D_s).
            teachers: Embeddings of each teacher, (B, D_t).

        Returns:
            For each teacher, student and teacher as float32 (B, D_t).
        """
        with torch.autocast(student.device.type, enabled=False):
            x, y = self._scale(student, teachers)  # (B, D_s), (B, D_t)
            projected = (x @ self.rotation.T).split(self.teacher_dims, dim=1)
            return list(zip(projected, y.split(self.teacher_dims, dim=1), strict=True))

    @override
    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the loss, a scalar, of embeddings (B, D_s) and one (B, D_t) per teacher."""
        with torch.autocast(student.device.type, enabled=False):
            x, y = self._scale(student, teachers)  # (B, D_s), (B, D_t)
            # In the wider of both spaces: nothing of either embedding is left out.
            if x.shape[1] <= y.shape[1]:
                x = x @ self.rotation.T  # (B, D_t)
            else:
                y = y @ self.rotation  # (B, D_s)
            loss = self.loss(x, y)  # ()
            if not self.loss.sees_lengths:
                loss = loss + self._difference_in_length(x, y)
            return loss + self._distance_from_rotation() if self.learned else loss

    def _difference_in_length(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The teacher's variance is 1 a feature, so its mean squared length is their number.
        return (x.norm(dim=1) - y.norm(dim=1)).square().mean() / len(self.rotation)

    def _distance_from_rotation(self) -> torch.Tensor:
        tall = self.rotation.shape[0] > self.rotation.shape[1]
        gram = self.rotation.mT @ self.rotation if tall else self.rotation @ self.rotation.mT
        return (gram - torch.eye(len(gram), device=gram.device)).square().sum() / len(gram)

    def _scale(
        self, student: torch.Tensor, teachers: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([teacher.float() for teacher in teachers], dim=1)  # (B, D_t)
        return (
            (student.float() - self.student_mean) * self.student_scale,
            (joined - self.teacher_mean) * self.teacher_scale,
        )
