"""Projector, batch norms and loss: from two embeddings to one number."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from typing_extensions import override

from g2l_plugin.distillation.beyond.relations import CKALoss
from g2l_plugin.distillation.losses import DistillationLoss
from g2l_plugin.errors import UserError

Normalization = Literal["batch", "scale"]

_BATCH_NORM_EPS = 1e-4
"""As in arXiv 2303.11098."""

_RIDGE = 0.01
"""Ridge of the projector's fit, relative to the mean variance of the student's features."""


class Objective(nn.Module):
    """Linear projector from student to teacher width, a normalization, and a loss.

    The projector is discarded after training. Everything is computed in float32, under mixed
    precision too: fourth powers overflow half floats.

    The paper's normalization is a batch norm without affine parameters on both sides. It gives all
    features of the teacher the same weight, those that hardly vary too. With `scale`, one fixed
    number scales all of the centred teacher's features, so that they keep their proportions, and
    the projection is compared as it is.

    Source: arXiv 2510.11176, which follows arXiv 2303.11098; `scale` is ours.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        loss: DistillationLoss,
        normalize_teacher: bool = True,
        normalization: Normalization = "batch",
    ) -> None:
        """Initializes the objective.

        Args:
            student_dim: Width of the student's embeddings, D_s.
            teacher_dim: Width of the teacher's embeddings, D_t.
            loss: The loss between projected student and teacher embeddings.
            normalize_teacher: Whether the teacher's embeddings pass a batch norm too, as in the
                projector paper.
            normalization: `batch` or `scale`; `scale` needs `fit`.
        """
        super().__init__()
        self.projector = nn.Linear(student_dim, teacher_dim)

        def batch_norm() -> nn.Module:
            return nn.BatchNorm1d(teacher_dim, eps=_BATCH_NORM_EPS, affine=False)

        self.student_norm = batch_norm() if normalization == "batch" else nn.Identity()
        self.teacher_norm: nn.Module = nn.Identity()
        if normalize_teacher:
            self.teacher_norm = batch_norm() if normalization == "batch" else Scale(teacher_dim)
        self.loss = loss

    @torch.no_grad()
    def fit(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Sets the projector to the ridge regression from student to normalised teacher.

        A random projector would first change the student to suit it, and lose what it knows.

        Args:
            student: Embeddings of training tiles by the student's start, (N, D_s).
            teacher: Embeddings of the same tiles, (N, D_t).
        """
        x, y = student.double(), teacher.double()
        if isinstance(self.teacher_norm, Scale):
            self.teacher_norm.fit(y)
            y = self.teacher_norm(y)
        elif isinstance(self.teacher_norm, nn.BatchNorm1d):
            y = (y - y.mean(0)) / (y.var(0, correction=0) + _BATCH_NORM_EPS).sqrt()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x = x - mean_x
        gram = x.T @ x  # (D_s, D_s)
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, x.T @ (y - mean_y)).T  # (D_t, D_s)
        self.projector.weight.copy_(weight)
        self.projector.bias.copy_(mean_y - weight @ mean_x)

    def project(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Brings both embeddings into the space of the loss.

        Args:
            student: Student embeddings (B, D_s).
            teacher: Teacher embeddings (B, D_t).

        Returns:
            Both as float32 (B, D_t).
        """
        with torch.autocast(student.device.type, enabled=False):
            projected = self.student_norm(self.projector(student.float()))  # (B, D_s) -> (B, D_t)
            target = self.teacher_norm(teacher.float())  # (B, D_t)
            return projected, target

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Computes the loss, a scalar, of embeddings (B, D_s) and (B, D_t)."""
        projected, target = self.project(student, teacher)  # (B, D_t) each
        with torch.autocast(student.device.type, enabled=False):
            return self.loss(projected, target)  # ()


class Scale(nn.Module):
    """Centres embeddings and scales them by one number, both fixed by `fit`."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        """Initializes a scale that changes nothing."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, embeddings: torch.Tensor) -> None:
        """Makes embeddings (N, D) centred with a mean variance of 1."""
        self.mean.copy_(embeddings.mean(0))
        self.scale.copy_(embeddings.var(0, correction=0).mean().sqrt().clamp_min(1e-12))

    @override
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (embeddings - self.mean) / self.scale  # (B, D)


class CombinedObjective(nn.Module):
    """The weighted mean of the objectives of several teachers and several student widths.

    Each pair of teacher and width has its own projector, batch norms and loss. A width is a prefix
    of the student's embedding, which thus becomes an embedding itself (Matryoshka, arXiv
    2205.13147). One teacher and the full width alone are the paper's objective.

    The relation term compares the student's own embedding with the teacher's: a projector can hide
    directions of what is published that the teacher does not know.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dims: Sequence[int],
        loss: DistillationLoss,
        normalize_teacher: bool = True,
        teacher_weights: Sequence[float] | None = None,
        widths: Sequence[int] = (),
        normalization: Normalization = "batch",
        relation_weight: float = 0.0,
    ) -> None:
        """Initializes the objective.

        Args:
            student_dim: Width of the student's embeddings, D_s.
            teacher_dims: Width of each teacher's embeddings, D_t.
            loss: The loss; every pair gets a copy.
            normalize_teacher: Whether the teachers' embeddings pass a batch norm too.
            teacher_weights: Weight of each teacher, any sum; None weights all equally.
            widths: Smaller widths of the student's embedding, to be usable alone.
            normalization: See `Objective`.
            relation_weight: Weight of a `CKALoss` beside the loss; 0 for none.

        Raises:
            UserError: A width or a weight is out of range.
        """
        super().__init__()
        if relation_weight < 0:
            raise UserError(f"`relation_weight` is {relation_weight}. Expected at least 0.")
        self.relation_weight, self.relation = relation_weight, CKALoss()
        weights = [1.0] * len(teacher_dims) if teacher_weights is None else list(teacher_weights)
        if len(weights) != len(teacher_dims) or min(weights) <= 0:
            raise UserError(
                f"`teacher_weights` is {weights} for {len(teacher_dims)} teachers. Expected one "
                "weight above 0 per teacher."
            )
        if any(not 0 < width < student_dim for width in widths) or len({*widths}) < len(widths):
            raise UserError(
                f"`widths` is {list(widths)}. Expected distinct numbers from 1 to below "
                f"{student_dim}, the width of the student's embedding, which is always included."
            )
        self.weights = [weight / sum(weights) for weight in weights]
        self.widths = [*sorted(widths), student_dim]
        self.parts = nn.ModuleList(
            nn.ModuleList(
                Objective(width, teacher_dim, copy.deepcopy(loss), normalize_teacher, normalization)
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
                if self.relation_weight:
                    loss = loss + self.relation_weight * self.relate(prefix, teacher)
                total = total + loss * (weight / len(self.widths))
        return total

    def fit(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> None:
        """Fits every projector and fixed normalization; see `Objective.fit`.

        Args:
            student: Embeddings of training tiles by the student's start, (N, D_s).
            teachers: Embeddings of the same tiles by each teacher, (N, D_t).
        """
        for nested, teacher in zip(self._nested(), teachers, strict=True):
            for objective, width in zip(nested, self.widths, strict=True):
                objective.fit(student[:, :width], teacher)

    def relate(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Computes the relation term, a scalar, of embeddings (B, D_s) and (B, D_t)."""
        with torch.autocast(student.device.type, enabled=False):
            return self.relation(student.float(), teacher.float())

    def _nested(self) -> list[list[Objective]]:
        """The objectives by teacher and width."""
        return [list(nested) for nested in self.parts]  # type: ignore[call-overload]
