"""Losses between the relations of tiles: how alike each embedding sees them."""

from __future__ import annotations

import torch
from torch.nn import functional
from typing_extensions import override

from g2l_plugin.distillation.losses import DistillationLoss
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.alignment import hsic_1
from g2l_plugin.metrics.cka import LEAST_TILES


class CKALoss(DistillationLoss):
    """One minus the unbiased linear CKA of the batch: the two see the same tiles as alike.

    It compares how tiles relate to each other, so the embeddings may have different widths, and no
    projector is needed. The biased CKA of a batch is near 1 whatever the embeddings are.

    Source: see `g2l_plugin.metrics.alignment.unbiased_cka`.
    """

    @override
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        if len(student) < LEAST_TILES:
            raise UserError(
                f"CKALoss compares the tiles of a batch. Got {len(student)}, expected at least "
                f"{LEAST_TILES}."
            )
        k, m = (_inner_products(z) for z in (student, teacher))  # (B, B)
        everything = k.new_ones(1, len(k))
        km, kk, mm = (hsic_1(*pair, everything) for pair in ((k, m), (k, k), (m, m)))  # (1,)
        return 1 - (km / (kk * mm).clamp_min(1e-12).sqrt()).squeeze()  # ()


def _inner_products(embeddings: torch.Tensor) -> torch.Tensor:
    """Inner products of the centred embeddings (B, D), with a zero diagonal, (B, B)."""
    centred = embeddings - embeddings.mean(0)
    # A scale of 1, so that fourth powers of the embeddings stay in range.
    centred = centred * (centred.square().mean() + 1e-12).rsqrt()
    products = centred @ centred.T
    return products - products.diagonal().diag()


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
