"""Losses between projected student and teacher embeddings."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override


class DistillationLoss(nn.Module, abc.ABC):
    """A loss between two batches of embeddings."""

    sees_lengths: ClassVar[bool] = True
    """Whether it depends on how long embeddings are, and not on their directions alone."""

    @property
    def settled(self) -> bool:
        """Whether the loss of a step can be compared with those of later ones."""
        return True

    @abc.abstractmethod
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Computes the loss.

        Args:
            student: Projected student embeddings, float32 (B, D), with gradient.
            teacher: Teacher embeddings, float32 (B, D), without gradient.

        Returns:
            The loss, a scalar.
        """


class LogSumLoss(DistillationLoss):
    """The log-sum loss: log of the sum of |student - teacher|^alpha over batch and features.

    Source: Miles and Mikolajczyk, arXiv 2303.11098; arXiv 2510.11176 chooses alpha 4.
    """

    def __init__(self, alpha: float = 4.0) -> None:
        """Initializes the loss.

        Args:
            alpha: The exponent. A larger one gives more weight to the largest differences.
        """
        super().__init__()
        self.alpha = alpha

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        total = (student - teacher).abs().pow(self.alpha).sum()  # (B, D) -> ()
        # Equal embeddings have no finite logarithm; the smallest float keeps the gradient zero.
        return total.clamp_min(torch.finfo(total.dtype).tiny).log()


class MeanSquaredErrorLoss(DistillationLoss):
    """The mean squared difference."""

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(student, teacher)


class CosineLoss(DistillationLoss):
    """One minus the cosine between the two embeddings of each tile, averaged over the batch.

    The length of embeddings is left free, unless the projector is a rotation, which holds it.
    """

    sees_lengths = False

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()  # (B,) -> ()


class SmoothL1Loss(DistillationLoss):
    """The smooth L1 (Huber) difference, averaged."""

    def __init__(self, beta: float = 1.0) -> None:
        """Initializes the loss.

        Args:
            beta: The difference at which the loss changes from quadratic to linear.
        """
        super().__init__()
        self.beta = beta

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return functional.smooth_l1_loss(student, teacher, beta=self.beta)
