import pytest
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.slides.views import AugmentedView, center_view


def test_a_view_is_a_float_crop_in_the_unit_interval():
    tiles = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    view = AugmentedView(size=56)(tiles)
    assert view.shape == (4, 3, 56, 56)
    assert view.dtype == torch.float32
    assert 0 <= view.min() and view.max() <= 1


def test_without_augmentation_a_view_is_the_tile():
    tiles = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    view = AugmentedView(size=32, flip_prob=0, color_jitter_prob=0, blur_prob=0)(tiles)
    torch.testing.assert_close(view, tiles / 255)


def test_every_tile_draws_its_own_augmentation():
    torch.manual_seed(0)
    tiles = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8).expand(16, -1, -1, -1)
    view = AugmentedView(size=56)(tiles)
    distinct = {tuple(image.flatten()[:50].tolist()) for image in view}
    assert len(distinct) > 12


def test_each_part_happens_as_often_as_the_recipe_says():
    torch.manual_seed(0)
    n = 2000
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    tiles = ramp.expand(n, -1, -1, -1)
    flips = AugmentedView(16, color_jitter_prob=0, blur_prob=0)(tiles)
    assert (flips[:, 0, 0, 0] > 0.5).float().mean() == pytest.approx(0.5, abs=0.04)
    jitter = AugmentedView(16, flip_prob=0, blur_prob=0)(tiles)
    changed = (jitter - tiles).abs().flatten(1).max(1).values > 1e-4
    assert changed.float().mean() == pytest.approx(0.5, abs=0.04)
    step = (torch.arange(16) >= 8).float().expand(n, 3, 16, 16)
    blur = AugmentedView(16, flip_prob=0, color_jitter_prob=0)(step)
    changed = (blur - step).abs().flatten(1).max(1).values > 1e-6
    assert changed.float().mean() == pytest.approx(0.1, abs=0.025)


def test_the_centre_is_taken_for_validation():
    tiles = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6).expand(1, 3, 6, 6)
    expected = tiles[..., 1:5, 1:5] / 255
    torch.testing.assert_close(center_view(tiles, 4), expected)


@pytest.mark.parametrize("make", [AugmentedView(224), lambda tiles: center_view(tiles, 224)])
def test_tiles_smaller_than_the_view_are_refused(make):
    with pytest.raises(UserError, match="64x64 px are smaller than the view of 224"):
        make(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
