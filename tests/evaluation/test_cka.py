import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.evaluation.cka import linear_cka


def test_cka_is_its_closed_form_with_few_or_many_samples():
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
