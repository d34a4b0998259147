import pytest
import torch
from torch import nn
from torch.nn import functional

from g2l_plugin.distillation.beyond.patches import PatchObjective


@pytest.fixture
def grids():
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4)


def test_it_is_one_minus_the_mean_cosine_of_places(grids):
    student, teacher = grids
    objective = PatchObjective(3, [5])
    (projector,) = objective.projectors
    cosines = [
        functional.cosine_similarity(projector(student[b, :, y, x]), teacher[b, :, y, x], dim=0)
        for b in range(2)
        for y in range(4)
        for x in range(4)
    ]
    loss = objective(student, [teacher])
    assert loss.item() == pytest.approx(1 - sum(cosines).item() / 32, abs=1e-6)
    loss.backward()
    assert student.grad.abs().sum() > 0


def test_teachers_count_alike_and_scale_does_not_count(grids):
    student, teacher = grids
    objective = PatchObjective(3, [5, 3])
    with torch.no_grad():
        objective.projectors[1].weight.copy_(torch.eye(3))
        objective.projectors[1].bias.zero_()
    first = PatchObjective(3, [5])
    first.projectors[0] = objective.projectors[0]
    both = objective(student, [1e3 * teacher, 7 * student.detach()])
    assert both.item() == pytest.approx(first(student, [teacher]).item() / 2, abs=1e-6)


def test_a_teachers_grid_is_resampled_to_the_students(grids):
    student, _ = grids
    objective = PatchObjective(3, [3])
    objective.projectors[0] = nn.Identity()
    fine = student.detach().repeat_interleave(4, -1).repeat_interleave(4, -2)
    # Blocks of equal values: resampling to one place a block keeps their order, but blends edges.
    assert objective(student, [fine]).item() < 0.1
    assert objective(student, [fine.flip(-1)]).item() > 0.5


def test_half_precision_is_compared_in_float32(grids):
    student, teacher = grids
    objective = PatchObjective(3, [5])
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(student.bfloat16(), [teacher.bfloat16()])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(objective(student, [teacher]).item(), abs=0.02)
