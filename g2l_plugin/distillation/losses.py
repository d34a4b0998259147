"""Losses between projected student and teacher embeddings."""

from __future__ import annotations

import abc

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override


class DistillationLoss(nn.Module, abc.ABC):
    """A loss between two batches of embeddings."""

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
    """One minus the cosine between the two embeddings of each tile, averaged over the batch."""

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


class SimilarityKLLoss(DistillationLoss):
    """Kullback-Leibler divergence between the similarity distributions of teacher and student.

    A queue of earlier teacher embeddings replaces classes. Each tile has a softmax over its cosine
    similarities to the queue, one from its teacher embedding and one from its student embedding.
    The loss is KL(teacher || student), averaged over the batch. The queue starts with the first
    batch and is saved in checkpoints.
    """

    queue: torch.Tensor

    def __init__(
        self,
        queue_size: int = 4096,
        teacher_temperature: float = 0.05,
        student_temperature: float = 0.05,
    ) -> None:
        """Initializes the loss.

        Args:
            queue_size: Teacher embeddings to keep.
            teacher_temperature: Softmax temperature of the teacher's similarities.
            student_temperature: Softmax temperature of the student's similarities.
        """
        super().__init__()
        self.queue_size = queue_size
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.register_buffer("queue", torch.empty(0, 0), persistent=False)

    @override
    def get_extra_state(self) -> torch.Tensor:
        # A buffer of the state dict must keep its shape; the queue grows.
        return self.queue

    @override
    def set_extra_state(self, state: torch.Tensor) -> None:
        self.queue = state.to(self.queue.device)

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        student = functional.normalize(student, dim=-1)  # (B, D)
        teacher = functional.normalize(teacher, dim=-1).detach()  # (B, D)
        if self.queue.numel() == 0:
            self.queue = teacher
        anchors = self.queue  # (Q, D)
        target = functional.log_softmax(teacher @ anchors.T / self.teacher_temperature, dim=-1)
        log_prob = functional.log_softmax(student @ anchors.T / self.student_temperature, dim=-1)
        if self.training:
            self.queue = torch.cat([teacher, anchors])[: self.queue_size]
        # (B, Q), (B, Q) -> ()
        return functional.kl_div(log_prob, target, reduction="batchmean", log_target=True)
