import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.distillation.beyond.stain import StainJitter
from g2l_plugin.errors import UserError


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(16, 3, 24, 24) * 0.9 + 0.05


def test_only_drawn_images_change_and_stay_images(images):
    changed = StainJitter(prob=0.5)(images)
    differing = (changed != images).flatten(1).any(1)
    assert 0 < differing.sum() < len(images)
    assert torch.equal(changed[~differing], images[~differing])
    assert changed.min() >= 0 and changed.max() <= 1 and changed.shape == images.shape
    assert torch.equal(StainJitter(prob=0.0)(images), images)


def test_without_a_change_of_stain_or_scale_an_image_stays(images):
    same = StainJitter(sigma=0.0, prob=1.0, least_scale=1.0)(images)
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(sigma=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_more_of_a_stain_darkens_and_less_lightens_and_draws_are_torchs(sigma, seed):
    torch.manual_seed(seed)
    images = torch.rand(8, 3, 4, 4)
    jitter = StainJitter(sigma=sigma, prob=1.0, least_scale=1.0)
    torch.manual_seed(seed)
    first = jitter(images)
    torch.manual_seed(seed)
    assert torch.equal(jitter(images), first)
    density, before = -first.clamp_min(1e-4).log(), -images.clamp_min(1 / 255).log()
    inside = (first > 1e-3) & (first < 1)
    # a·s + b of three stains: no channel moves further than all three together can.
    bound = (before.amax(1, keepdim=True) * 12 + 2) * sigma
    assert ((density - before).abs() <= bound)[inside].all()


def test_a_lower_resolution_smooths(images):
    blurred = StainJitter(sigma=0.0, prob=1.0, least_scale=0.05)(images)
    assert blurred.var() < images.var()


@pytest.mark.parametrize(("name", "value"), [("sigma", -0.1), ("prob", 1.5), ("least_scale", 0.0)])
def test_settings_out_of_range_are_an_error(name, value):
    with pytest.raises(UserError, match=f"`{name}` of StainJitter is"):
        StainJitter(**{name: value})
