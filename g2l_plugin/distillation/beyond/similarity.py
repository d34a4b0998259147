"""The student learns which of many tiles its teacher finds alike."""

from __future__ import annotations

import torch
from torch.nn import functional
from typing_extensions import override

from g2l_plugin.distillation.losses import DistillationLoss


class SimilarityKLLoss(DistillationLoss):
    """Kullback-Leibler divergence between the similarity distributions of teacher and student.

    A queue of earlier teacher embeddings replaces classes. Each tile has a softmax over its cosine
    similarities to the queue, one from its teacher embedding and one from its student embedding.
    The loss is KL(teacher || student), averaged over the batch. The queue starts with the first
    batch and is saved in checkpoints. Until it is full, the loss rises with it.

    The length of embeddings is left free, unless the projector is a rotation, which holds it.
    """

    sees_lengths = False

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

    @property
    @override
    def settled(self) -> bool:
        return len(self.queue) == self.queue_size

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
        earlier = self.queue if self.queue.numel() else teacher[:0]  # (Q, D)
        anchors = earlier if len(earlier) else teacher  # of the first batch its own
        target = functional.log_softmax(teacher @ anchors.T / self.teacher_temperature, dim=-1)
        log_prob = functional.log_softmax(student @ anchors.T / self.student_temperature, dim=-1)
        if self.training:
            self.queue = torch.cat([teacher, earlier])[: self.queue_size]
        # (B, Q), (B, Q) -> ()
        return functional.kl_div(log_prob, target, reduction="batchmean", log_target=True)
