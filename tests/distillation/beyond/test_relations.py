import pytest
import torch
from torch.nn import functional

from g2l_plugin.distillation.beyond.relations import CKALoss, SimilarityKLLoss
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.alignment import unbiased_cka


def batches(rows=6, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, columns, generator=generator),
        torch.randn(rows, columns, generator=generator),
    )


def test_cka_loss_is_one_minus_the_unbiased_alignment_in_any_two_widths():
    student, _ = batches(rows=12)
    _, teacher = batches(rows=12, columns=8)
    teacher[:, :5] += 2 * student
    expected = 1 - unbiased_cka(student, teacher).value
    assert CKALoss()(student, teacher).item() == pytest.approx(expected, abs=1e-5)
    assert CKALoss()(1e4 * student + 7, 1e-3 * teacher).item() == pytest.approx(expected, abs=1e-3)
    assert CKALoss()(student, student).item() == pytest.approx(0, abs=1e-6)
    constant = torch.ones(12, 5, requires_grad=True)
    CKALoss()(constant, teacher).backward()
    assert torch.isfinite(constant.grad).all()
    with pytest.raises(UserError, match="Got 3, expected at least 4"):
        CKALoss()(student[:3], teacher[:3])


def test_similarity_kl_is_its_closed_form():
    student, teacher = batches()
    loss = SimilarityKLLoss(teacher_temperature=0.1, student_temperature=0.2)
    anchors = functional.normalize(teacher)
    p = (anchors @ anchors.T / 0.1).softmax(-1)
    q = (functional.normalize(student) @ anchors.T / 0.2).softmax(-1)
    expected = (p * (p / q).log()).sum(1).mean().item()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_similarity_kl_remembers_the_newest_teachers_up_to_its_size():
    loss = SimilarityKLLoss(queue_size=8)
    for seed in range(3):
        student, teacher = batches(seed=seed)
        loss(student, teacher)
    assert loss.queue.shape == (8, 5)
    torch.testing.assert_close(loss.queue[:6], functional.normalize(teacher))
    before = loss.queue
    loss.eval()
    loss(student, teacher)
    assert loss.queue is before


def test_similarity_kls_queue_goes_on_from_a_checkpoint(tmp_path):
    first, resumed = SimilarityKLLoss(queue_size=8), SimilarityKLLoss(queue_size=8)
    first(*batches())
    torch.save(first.state_dict(), tmp_path / "state.ckpt")
    resumed.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(resumed.queue, first.queue)
    assert torch.equal(resumed(*batches(seed=1)), first(*batches(seed=1)))
