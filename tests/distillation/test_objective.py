import pytest
import torch

from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.losses import LogSumLoss
from g2l_plugin.distillation.objective import CombinedObjective, Objective
from g2l_plugin.errors import UserError


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


def test_one_teacher_and_one_width_is_the_papers_objective():
    torch.manual_seed(0)
    combined = CombinedObjective(6, [10], LogSumLoss())
    student, teacher = torch.randn(8, 6), torch.randn(8, 10)
    expected = combined.parts[0][0](student, teacher)
    assert torch.equal(combined(student, [teacher]), expected)


def test_every_teacher_counts_by_its_weight_and_every_width_the_same():
    torch.manual_seed(0)
    combined = CombinedObjective(6, [10, 7], LogSumLoss(), teacher_weights=[3, 1], widths=[4, 2])
    assert combined.widths == [2, 4, 6]
    student, teachers = torch.randn(8, 6), [torch.randn(8, 10), torch.randn(8, 7)]
    parts = [
        weight / 3 * combined.parts[teacher][nested](student[:, :width], teachers[teacher])
        for teacher, weight in ((0, 0.75), (1, 0.25))
        for nested, width in enumerate((2, 4, 6))
    ]
    torch.testing.assert_close(combined(student, teachers), sum(parts))
    (first, target), _ = combined.project(student, teachers)
    assert first.shape == target.shape == (8, 10)


def test_queues_of_teachers_are_not_shared():
    combined = CombinedObjective(6, [10, 7], SimilarityKLLoss(queue_size=8))
    combined(torch.randn(8, 6), [torch.randn(8, 10), torch.randn(8, 7)])
    assert [part[0].loss.queue.shape[1] for part in combined.parts] == [10, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": [1.0]}, "`teacher_weights` is .*for 2 teachers"),
        ({"teacher_weights": [1.0, 0.0]}, "one weight above 0 per teacher"),
        ({"widths": [6]}, "`widths` is .*to below 6, the width of the student's"),
        ({"widths": [2, 2]}, "distinct numbers"),
        ({"widths": [0]}, "distinct numbers"),
    ],
)
def test_weights_and_widths_out_of_range_are_an_error(options, message):
    with pytest.raises(UserError, match=message):
        CombinedObjective(6, [10, 7], LogSumLoss(), **options)
