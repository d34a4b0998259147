import torch

from g2l_plugin.distillation.losses import LogSumLoss
from g2l_plugin.distillation.objective import Objective


def test_both_sides_are_normalised_over_the_batch():
    torch.manual_seed(0)
    objective = Objective(6, 10, LogSumLoss())
    projected, target = objective.project(torch.randn(64, 6) * 5 + 3, torch.randn(64, 10) * 9 - 4)
    for side in (projected, target):
        assert side.shape == (64, 10)
        torch.testing.assert_close(side.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
        torch.testing.assert_close(side.std(0, correction=0), torch.ones(10), atol=1e-3, rtol=0)


def test_the_teacher_can_be_left_as_it_is():
    teacher = torch.randn(8, 10) * 9 - 4
    _, target = Objective(6, 10, LogSumLoss(), normalize_teacher=False).project(
        torch.randn(8, 6), teacher
    )
    assert torch.equal(target, teacher)


def test_the_batch_norms_learn_nothing_and_use_the_papers_epsilon():
    objective = Objective(6, 10, LogSumLoss())
    assert {name for name, _ in objective.named_parameters()} == {
        "projector.weight",
        "projector.bias",
    }
    assert objective.student_norm.eps == objective.teacher_norm.eps == 1e-4


def test_half_precision_embeddings_are_compared_in_full():
    objective = Objective(6, 10, LogSumLoss())
    student, teacher = torch.randn(8, 6), torch.randn(8, 10)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(student.bfloat16(), teacher.bfloat16())
    assert loss.dtype == torch.float32
    expected = objective(student.bfloat16().float(), teacher.bfloat16().float())
    torch.testing.assert_close(loss, expected)
