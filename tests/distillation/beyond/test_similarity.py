import pytest
import torch
from torch.nn import functional

from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss


def random_batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)


def test_similarity_kl_is_its_closed_form():
    student, teacher = random_batches()
    loss = SimilarityKLLoss(teacher_temperature=0.1, student_temperature=0.2)
    anchors = functional.normalize(teacher)
    p = (anchors @ anchors.T / 0.1).softmax(-1)
    q = (functional.normalize(student) @ anchors.T / 0.2).softmax(-1)
    expected = (p * (p / q).log()).sum(1).mean().item()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_similarity_kl_remembers_the_newest_teachers_up_to_its_size():
    loss = SimilarityKLLoss(queue_size=8)
    for seed in range(3):
        student, teacher = random_batches(seed=seed)
        loss(student, teacher)
    assert loss.queue.shape == (8, 5)
    torch.testing.assert_close(loss.queue[:6], functional.normalize(teacher))
    before = loss.queue
    loss.eval()
    loss(student, teacher)
    assert loss.queue is before


def test_similarity_kls_queue_goes_on_from_a_checkpoint(tmp_path):
    first, resumed = SimilarityKLLoss(queue_size=8), SimilarityKLLoss(queue_size=8)
    first(*random_batches())
    torch.save(first.state_dict(), tmp_path / "state.ckpt")
    resumed.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(resumed.queue, first.queue)
    assert torch.equal(resumed(*random_batches(seed=1)), first(*random_batches(seed=1)))


def test_similarity_kl_is_settled_when_its_queue_is_full():
    loss = SimilarityKLLoss(queue_size=9)
    settled = [loss.settled]
    for seed in range(3):
        loss(*random_batches(seed))
        settled.append(loss.settled)
    assert settled == [False, False, True, True]
