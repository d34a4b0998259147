import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.losses import (
    CosineLoss,
    LogSumLoss,
    MeanSquaredErrorLoss,
    SmoothL1Loss,
)

LOSSES = [
    LogSumLoss,
    MeanSquaredErrorLoss,
    CosineLoss,
    SmoothL1Loss,
    SimilarityKLLoss,
]


def batches(rows=6, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, columns, generator=generator),
        torch.randn(rows, columns, generator=generator),
    )


def test_log_sum_is_its_closed_form():
    student, teacher = (
        torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        torch.tensor([[0.0, 4.0], [0.0, 2.0]]),
    )
    assert LogSumLoss(alpha=4)(student, teacher).item() == pytest.approx(math.log(1 + 16 + 81))
    assert LogSumLoss(alpha=1)(student, teacher).item() == pytest.approx(math.log(1 + 2 + 3))


@given(scale=st.floats(0.1, 100), alpha=st.floats(1, 6), seed=st.integers(0, 1000))
def test_log_sum_turns_scale_into_a_constant(scale, alpha, seed):
    student, teacher = (z.double() for z in batches(seed=seed))
    loss = LogSumLoss(alpha)
    shifted = loss(student * scale, teacher * scale).item()
    assert shifted == pytest.approx(loss(student, teacher).item() + alpha * math.log(scale))


def test_log_sum_of_equal_embeddings_is_finite_with_a_finite_gradient():
    student = torch.ones(2, 3, requires_grad=True)
    loss = LogSumLoss()(student, torch.ones(2, 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(student.grad, torch.zeros(2, 3))


def test_others_are_their_closed_forms():
    student, teacher = batches()
    assert MeanSquaredErrorLoss()(student, teacher) == pytest.approx(
        ((student - teacher) ** 2).mean().item()
    )
    cosine = (functional.normalize(student) * functional.normalize(teacher)).sum(1)
    assert CosineLoss()(student, teacher).item() == pytest.approx((1 - cosine).mean().item())
    difference = (student - teacher).abs()
    huber = torch.where(difference < 0.5, difference**2, difference - 0.25)
    assert SmoothL1Loss(beta=0.5)(student, teacher).item() == pytest.approx(huber.mean().item())


@pytest.mark.parametrize("loss_class", LOSSES)
def test_every_loss_falls_when_it_is_descended(loss_class):
    student, teacher = batches(32, 8)
    student.requires_grad_(True)
    loss = loss_class()
    optimizer = torch.optim.Adam([student], lr=0.05)
    first = loss(student, teacher).item()
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        optimizer.step()
    assert value.item() < first
    if loss_class in (SimilarityKLLoss,):  # it aligns similarities, not the embeddings themselves
        assert value.item() < 0.1 * first
        return
    assert torch.cosine_similarity(student, teacher).mean() > 0.9
