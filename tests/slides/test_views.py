import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from g2l_plugin.errors import UserError
from g2l_plugin.slides.view_draws import ViewSettings, draw
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


def test_each_part_occurs_with_its_probability():
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


def test_the_validation_view_is_the_centre():
    tiles = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6).expand(1, 3, 6, 6)
    expected = tiles[..., 1:5, 1:5] / 255
    torch.testing.assert_close(center_view(tiles, 4), expected)


@pytest.mark.parametrize("make", [AugmentedView(224), lambda tiles: center_view(tiles, 224)])
def test_tiles_smaller_than_the_view_are_an_error(make):
    with pytest.raises(UserError, match="64x64 px are smaller than the view of 224"):
        make(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def random_tiles(n, size=40):
    shape = (n, 3, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()


def test_a_view_depends_only_on_seed_view_and_tile():
    tiles, numbers = random_tiles(8), list(range(100, 108))
    make = AugmentedView(32, blur_prob=0.5, seed=3)
    views = make(tiles, numbers, view=2)
    torch.manual_seed(99)
    other_order = [5, 0, 7]
    alone = make(tiles[other_order], [numbers[i] for i in other_order], view=2)
    assert torch.equal(alone, views[other_order])
    others = (make(tiles, numbers, view=3), AugmentedView(32, seed=4)(tiles, numbers, view=2))
    for other in (*others, make(tiles, range(8), view=2)):
        assert not torch.equal(other, views)


def test_views_made_together_equal_views_made_one_by_one(monkeypatch):
    tiles = random_tiles(20)
    make = AugmentedView(32, blur_prob=0.5)
    one_by_one = make(tiles, range(20))
    monkeypatch.setattr("g2l_plugin.slides.views._CHUNK_TILES", {"cpu": 7})
    assert torch.equal(make(tiles, range(20)), one_by_one)


def test_draws_have_the_distributions_of_torchvision():
    """Kolmogorov-Smirnov (for the order chi-squared) tests against 2,000 draws of torchvision."""
    n = 2000
    settings = ViewSettings(**AugmentedView(224, color_jitter_prob=1, blur_prob=1).settings())
    draws = draw(settings, range(n), 0, 256, 256)
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.15, 0.15, 0.1, 0.05)
    theirs = [jitter.make_params([]) for _ in range(n)]
    names = ["brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"]
    for kind, name in enumerate(names):
        drawn = [float(params[name]) for params in theirs]
        assert stats.ks_2samp(draws.factors[:, kind], drawn).pvalue > 1e-3, name
    orders = np.stack([np.asarray(params["fn_idx"]) for params in theirs])
    for place in range(4):
        ours, other = (np.bincount(o[:, place], minlength=4) for o in (draws.order, orders))
        assert stats.chi2_contingency([ours, other]).pvalue > 1e-3
    crop, images = v2.RandomCrop(224), [torch.empty(3, 256, 256)]
    crops = [crop.make_params(images) for _ in range(n)]
    assert stats.ks_2samp(draws.top, [c["top"] for c in crops]).pvalue > 1e-3
    assert stats.ks_2samp(draws.left, [c["left"] for c in crops]).pvalue > 1e-3
    assert {draws.top.min(), draws.left.min()} == {0}
    assert {draws.top.max(), draws.left.max()} == {32}
    blur = v2.GaussianBlur(9)
    sigmas = [blur.make_params([])["sigma"][0] for _ in range(n)]
    assert stats.ks_2samp(draws.sigma, sigmas).pvalue > 1e-3


def test_epochs_reuse_a_limited_number_of_views():
    view = AugmentedView(n_views=3)
    assert [view.number(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert AugmentedView().number(7) == 7


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hue", 0.6), ("flip_prob", 1.5), ("n_views", 0), ("blur_kernel_size", 8), ("seed", -1)],
)
def test_a_setting_outside_its_range_is_an_error(setting, value):
    with pytest.raises(UserError, match=f"`{setting}` is {value}"):
        AugmentedView(**{setting: value})
