import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.utilities import dim_zero_sum

from g2l_plugin.errors import UserError
from g2l_plugin.metrics import cka
from g2l_plugin.metrics.cka import LinearCKA, cka_between, linear_cka
from g2l_plugin.metrics.embeddings import Embeddings


def hsic_1(x, y):
    """HSIC_1 by its definition, from the N x N Gram matrices."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    ones = torch.ones(n, dtype=x.dtype)
    total = torch.trace(k @ m)
    total += (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (ones @ k @ m @ ones)
    return total / (n * (n - 3))


def unbiased_cka(x, y):
    return (hsic_1(x, y) / (hsic_1(x, x) * hsic_1(y, y)).sqrt()).item()


def draw(n, seed=0, x_width=8, y_width=12, offset=3.0):
    """Two embeddings that share a signal and have a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    x, y = (
        common @ torch.randn(4, width, generator=generator, dtype=torch.float64)
        + torch.randn(n, width, generator=generator, dtype=torch.float64)
        + offset
        for width in (x_width, y_width)
    )
    return x, y


def streamed(metric, x, y, sizes):
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update(part_x, part_y)
    return metric.compute().item()


def test_cka_equals_its_closed_form_with_few_or_many_tiles():
    torch.manual_seed(0)
    for n in (6, 40):
        x, y = torch.randn(n, 8), torch.randn(n, 12)
        centre = torch.eye(n) - 1 / n
        k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
        expected = (k * m).sum() / (k.norm() * m.norm())
        assert linear_cka(x, y).item() == pytest.approx(expected.item(), rel=1e-4)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-5, 5))
def test_rotation_scale_and_shift_change_nothing(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, 6, generator=generator), torch.randn(20, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    assert linear_cka(x, x @ rotation * scale + shift).item() == pytest.approx(1, abs=1e-4)
    moved = linear_cka(x @ rotation * scale + shift, y).item()
    assert moved == pytest.approx(linear_cka(x, y).item(), abs=1e-4)


def test_unrelated_embeddings_align_little():
    torch.manual_seed(0)
    assert linear_cka(torch.randn(2000, 8), torch.randn(2000, 8)) < 0.02


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("n", [4, 6, 300])
def test_moments_and_gram_matrices_give_the_same_cka(n, offset):
    x, y = draw(n, offset=offset)
    expected = linear_cka(x, y).item()
    assert streamed(LinearCKA(8, 12), x, y, 50) == pytest.approx(expected, rel=1e-6)
    expected = unbiased_cka(x - x.mean(0), y - y.mean(0))
    unbiased = streamed(LinearCKA(8, 12, unbiased=True), x, y, 50)
    assert unbiased == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.booleans())
def test_batching_changes_nothing(sizes, unbiased):
    x, y = draw(sum(sizes) + 4)
    whole = streamed(LinearCKA(8, 12, unbiased), x, y, len(x))
    assert streamed(LinearCKA(8, 12, unbiased), x, y, [*sizes, 4]) == pytest.approx(whole)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 100), st.floats(-5, 5), st.booleans())
def test_rotation_scale_and_shift_do_not_change_streamed_cka(seed, scale, shift, unbiased):
    x, y = draw(20, seed)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    moved = x @ torch.linalg.qr(square)[0] * scale + shift
    value = streamed(LinearCKA(8, 12, unbiased), x, y, 20)
    assert streamed(LinearCKA(8, 12, unbiased), moved, y, 20) == pytest.approx(value, rel=1e-5)
    assert streamed(LinearCKA(8, 8, unbiased), x, moved, 20) == pytest.approx(1, rel=1e-5)


def test_few_tiles_of_many_features_mislead_only_the_biased_estimator():
    torch.manual_seed(0)
    x, y = torch.randn(30, 500), torch.randn(30, 500)
    assert streamed(LinearCKA(500, 500), x, y, 30) > 0.9
    assert abs(streamed(LinearCKA(500, 500, unbiased=True), x, y, 30)) < 0.15


@pytest.mark.parametrize("unbiased", [False, True])
def test_merging_two_halves_gives_the_whole(unbiased):
    x, y = draw(90)
    halves = [LinearCKA(8, 12, unbiased) for _ in range(2)]
    halves[0].update(x[:30], y[:30])
    halves[1].update(x[30:], y[30:])
    halves[0].merge_state(halves[1])
    whole = streamed(LinearCKA(8, 12, unbiased), x, y, 90)
    assert halves[0].compute().item() == pytest.approx(whole, rel=1e-9)
    assert set(halves[0]._reductions.values()) == {
        dim_zero_sum
    }  # so devices are merged the same way


def test_a_constant_embedding_aligns_with_nothing():
    x, _ = draw(20)
    for constant in (torch.zeros(20, 3), torch.full((20, 3), 0.1)):
        assert math.isnan(streamed(LinearCKA(8, 3), x, constant, 7))
        assert math.isnan(streamed(LinearCKA(8, 3, unbiased=True), x, constant, 7))
    assert math.isnan(streamed(LinearCKA(8, 12, unbiased=True), *draw(3), 3))


def test_embeddings_of_two_encoders_are_matched_by_name(monkeypatch):
    monkeypatch.setattr(cka, "_BATCH_SIZE", 16)
    x, y = (z.float().numpy() for z in draw(60))
    names = np.array([f"tile {i}" for i in range(60)])
    order = np.random.default_rng(0).permutation(60)
    a = Embeddings(x, np.zeros(60, int), names)
    b = Embeddings(y[order], np.zeros(60, int), names[order])
    found = cka_between(a, b)
    assert found == pytest.approx(
        {
            "LinearCKA": linear_cka(torch.from_numpy(x), torch.from_numpy(y)).item(),
            "LinearCKAUnbiased": unbiased_cka(
                torch.from_numpy(x).double(), torch.from_numpy(y).double()
            ),
        },
        rel=1e-6,
    )
    assert cka_between(a, dataclasses.replace(a, values=2 * x)) == pytest.approx(
        {"LinearCKA": 1, "LinearCKAUnbiased": 1}
    )


def test_embeddings_of_other_tiles_are_an_error():
    x, _ = draw(5)
    names = np.array(list("abcde"))
    a = Embeddings(x.float().numpy(), np.zeros(5, int), names)
    b = Embeddings(x[:3].float().numpy(), np.zeros(3, int), np.array(["a", "b", "z"]))
    with pytest.raises(
        UserError, match="Of 5 and 3 tiles, 3 are only in the first and 1 only in the"
    ):
        cka_between(a, b)
