import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.distillation.beyond.rotation import RotationObjective
from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.losses import CosineLoss, MeanSquaredErrorLoss, SmoothL1Loss
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.alignment import unbiased_cka


def embeddings(*dims, n=300, seed=0):
    """Embeddings of one signal in several widths, with features of very different variance."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 6, generator=generator) * torch.logspace(-1, 1, 6)
    return [signal @ torch.randn(6, dim, generator=generator) + 3 for dim in dims]


def make(student_dim, teacher_dims, weights=(1.0,), learned=False, loss=None):
    loss = loss or MeanSquaredErrorLoss()
    return RotationObjective(student_dim, teacher_dims, loss, weights, learned)


@given(student_dim=st.integers(1, 12), teacher_dim=st.integers(1, 12), seed=st.integers(0, 99))
def test_it_is_the_best_rotation_and_keeps_distances(student_dim, teacher_dim, seed):
    student, teacher = embeddings(student_dim, teacher_dim, seed=seed)
    objective = make(student_dim, [teacher_dim])
    objective.fit(student, [teacher])
    r = objective.rotation
    gram = r.T @ r if student_dim <= teacher_dim else r @ r.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    fitted = objective(student, [teacher]).item()
    other = make(student_dim, [teacher_dim])
    for _ in range(5):
        other.load_state_dict(objective.state_dict())
        u, _, vh = torch.linalg.svd(torch.randn(r.shape), full_matrices=False)
        other.rotation.copy_(u @ vh)
        assert other(student, [teacher]).item() >= fitted - 1e-5
    for factor in (0.9, 1.1):
        other.load_state_dict(objective.state_dict())
        other.student_scale.mul_(factor)
        assert other(student, [teacher]).item() >= fitted - 1e-5


@pytest.mark.parametrize("dims", [(8, 12), (8, 8), (12, 8)])
def test_a_student_that_learned_it_has_its_teachers_relations(dims):
    (teacher,) = embeddings(dims[1])
    start = torch.randn(len(teacher), dims[0], generator=torch.Generator().manual_seed(1))
    objective = make(dims[0], [dims[1]])
    objective.fit(start, [teacher])
    student = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [student], max_iter=100, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def step():
        optimizer.zero_grad()
        loss = objective(student, [teacher])
        loss.backward()
        return loss

    optimizer.step(step)
    assert unbiased_cka(start, teacher).value < 0.1
    assert unbiased_cka(student.detach(), teacher).value > 0.999
    ((projected, target),) = objective.project(student.detach(), [teacher])
    assert projected.shape == target.shape == (300, dims[1])
    torch.testing.assert_close(projected, target, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("make_loss", [CosineLoss, SimilarityKLLoss])
@pytest.mark.parametrize("dims", [(8, 12), (12, 8)])
def test_a_loss_of_directions_alone_has_the_teachers_lengths_too(make_loss, dims):
    student, teacher = embeddings(*dims)
    objective = make(dims[0], [dims[1]], loss=make_loss()).eval()
    objective.fit(student, [teacher])
    longer = student.clone()  # from their mean
    longer[:30] += 9 * (longer[:30] - student.mean(0))
    ((projected, _),) = objective.project(student, [teacher])
    # Nine times the length more, of a tenth of the tiles, in units of the teacher's mean square.
    expected = (9 * projected[:30].norm(dim=1)).square().sum() / 300 / dims[1]
    difference = objective(longer, [teacher]) - objective(student, [teacher])
    assert difference.item() == pytest.approx(expected.item(), rel=0.05)


def test_a_loss_that_sees_lengths_is_left_as_it_is():
    student, teacher = embeddings(8, 12)
    for loss in (MeanSquaredErrorLoss(), SmoothL1Loss()):
        objective = make(8, [12], loss=loss)
        objective.fit(student, [teacher])
        ((projected, target),) = objective.project(student, [teacher])
        assert objective(student, [teacher]).item() == pytest.approx(loss(projected, target).item())


def test_the_teachers_features_keep_their_proportions():
    student, teacher = embeddings(8, 10)
    objective = make(8, [10])
    objective.fit(student, [teacher])
    ((_, target),) = objective.project(student[:20], [teacher[:20]])
    scale = teacher.var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(target, (teacher[:20] - teacher.mean(0)) / scale)


def test_teachers_are_joined_by_their_weights_whatever_their_scale():
    student, first, second = embeddings(8, 5, 7)
    objective = make(8, [5, 7], (0.75, 0.25))
    objective.fit(student, [first, 100 * second])
    pairs = objective.project(student, [first, 100 * second])
    variances = [target.var(0, correction=0).sum().item() for _, target in pairs]
    assert variances == pytest.approx([9, 3], rel=1e-4)
    joined = torch.cat([target for _, target in pairs], dim=1)
    projected = torch.cat([part for part, _ in pairs], dim=1)
    loss = objective(student, [first, 100 * second])
    assert loss.item() == pytest.approx((projected - joined).square().mean().item(), rel=1e-4)


def test_nothing_depends_on_the_batch_and_a_checkpoint_keeps_it():
    student, teacher = embeddings(8, 10)
    objective, again = make(8, [10]), make(8, [10])
    objective.fit(student, [teacher])
    again.load_state_dict(objective.state_dict())
    parts = [again(student[i : i + 1], [teacher[i : i + 1]]) for i in range(len(student))]
    assert torch.stack(parts).mean().item() == pytest.approx(
        objective(student, [teacher]).item(), rel=1e-4
    )
    assert not list(objective.parameters())


def test_equal_embeddings_of_all_tiles_are_told():
    student, teacher = embeddings(8, 10)
    with pytest.raises(UserError, match="the same embedding to all training tiles"):
        make(8, [10]).fit(torch.ones_like(student), [teacher])


def test_random_weights_do_not_give_a_scale():
    student, teacher = embeddings(8, 10)
    pretrained, random = make(8, [10]), make(8, [10])
    pretrained.fit(1e-3 * student, [teacher])
    random.fit(1e-3 * student, [teacher], pretrained=False)
    assert torch.equal(random.rotation, pretrained.rotation)
    assert random.student_scale == 1 and pretrained.student_scale > 10


@pytest.mark.parametrize("dims", [(8, 12), (8, 8), (12, 8)])
def test_one_that_trains_is_held_near_a_rotation(dims):
    student, teacher = embeddings(*dims)
    fixed, learned = make(dims[0], [dims[1]]), make(dims[0], [dims[1]], learned=True)
    for objective in (fixed, learned):
        objective.fit(student, [teacher])
    loss = learned(student, [teacher])
    torch.testing.assert_close(loss, fixed(student, [teacher]))  # a rotation: nothing is added
    loss.backward()
    assert learned.rotation.grad.abs().sum() > 0
    with torch.no_grad():  # twice a rotation has a Gram matrix of 4 in its diagonal, not 1
        stretched = make(dims[0], [dims[1]], learned=True)
        stretched.load_state_dict(learned.state_dict())
        stretched.rotation.mul_(2)
        same = make(dims[0], [dims[1]])
        same.load_state_dict(stretched.state_dict())
        added = stretched(student, [teacher]) - same(student, [teacher])
    torch.testing.assert_close(added, torch.tensor(9.0))
