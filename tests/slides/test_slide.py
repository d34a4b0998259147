import pickle
import types

import numpy as np
import openslide
import pytest
import tifffile
from helpers import damage
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.slides import overview
from g2l_plugin.slides.overview import read_overview
from g2l_plugin.slides.slide import (
    ReadPlan,
    SlideError,
    has_mpp,
    open_slide,
    plan_reads,
    read_tile,
    slide_mpp,
)


def test_mpp_in_the_metadata_is_not_overwritten(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", mpp=0.25)
    with open_slide(path) as slide:
        assert slide_mpp(slide, path, overwrite_mpp=0.5) == pytest.approx(0.25)


def test_missing_mpp_is_an_error_that_names_the_setting(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", mpp=None)
    with open_slide(path) as slide:
        with pytest.raises(UserError, match=r"a\.tiff .*overwrite_mpp"):
            slide_mpp(slide, path, overwrite_mpp=None)
        assert slide_mpp(slide, path, overwrite_mpp=0.5) == 0.5


@pytest.mark.parametrize(
    ("mpp", "target_mpp", "level", "read_size"),
    [
        (0.5, 0.5, 0, 256),
        (0.499, 0.5, 0, 256),  # vendors round: no resampling
        (0.25, 0.5, 1, 256),
        (0.25, 0.4, 0, 410),  # between levels: from the finer one
        (0.5, 0.48, 0, 246),
    ],
)
def test_tiles_are_read_from_the_coarsest_level_that_is_fine_enough(
    tmp_path, write_slide, mpp, target_mpp, level, read_size
):
    path = write_slide(tmp_path / "a.tiff")
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, mpp, target_mpp, (256, 256))
    assert (plan.level, plan.read_size) == (level, (read_size, read_size))
    assert plan.level0_size == (read_size * 2**level,) * 2


def test_a_slide_coarser_than_the_target_is_refused(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff")
    with (
        open_slide(path) as slide,
        pytest.raises(UserError, match=r"1\.000 microns per pixel, coarser than the 0\.500"),
    ):
        plan_reads(slide, path, 1.0, 0.5, (256, 256))


def test_a_tile_beyond_the_edge_is_white(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", size=256)
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, 0.5, 0.5, (64, 64))
        tile = read_tile(slide, plan, 240, 0, (64, 64))
    assert tile.shape == (3, 64, 64)
    assert tile.dtype == np.uint8
    assert (tile[:, :, 16:] == 255).all()


def write_waves(path, period, size=512):
    """Writes stripes of one period (pixels of level 0), 0.25 microns per pixel, no pyramid."""
    wave = 127.5 + 120 * np.sin(2 * np.pi * np.arange(size) / period)
    image = np.broadcast_to(wave[None, :, None], (size, size, 3)).astype(np.uint8)
    tifffile.imwrite(
        path,
        image,
        tile=(128, 128),
        photometric="rgb",
        resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.mark.parametrize("target_mpp", [0.5, 0.7, 1.0])
def test_detail_finer_than_a_tile_can_show_does_not_alias(tmp_path, target_mpp):
    # 2.6 pixels of level 0 are less than two of the tile from 0.33 microns per pixel on.
    for period, remains in ((2.6, False), (32, True)):
        path = write_waves(tmp_path / f"{period}.tiff", period)
        with open_slide(path) as slide:
            plan = plan_reads(slide, path, 0.25, target_mpp, (64, 64))
            tile = read_tile(slide, plan, 64, 64, (64, 64)).astype(float)
            nearest = slide.read_region((64, 64), 0, plan.read_size).resize((64, 64), 0)
        contrast = tile[:, :, 4:-4].std()
        assert np.asarray(nearest).astype(float)[..., 0].std() > 70  # without a filter it aliases
        assert contrast > 55 if remains else contrast < 15


def test_a_tile_equals_what_openslide_reads(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff")
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, 0.5, 0.5, (64, 64))
        tile = read_tile(slide, plan, 320, 480, (64, 64))
        region = slide.read_region((320, 480), 0, (64, 64)).convert("RGB")
    np.testing.assert_array_equal(tile, np.asarray(region).transpose(2, 0, 1))


def test_a_place_far_from_the_origin_is_exact_on_a_level_of_an_odd_factor(tmp_path, write_slide):
    plan = ReadPlan(1, (256, 256), (947, 947), downsample=3.7)
    assert plan.on_level(100_000, 50_000) == (27_027, 13_514)  # by the sizes: 27,033 and 13,516
    path = write_slide(tmp_path / "a.tiff", size=1000)
    with open_slide(path) as slide:
        plan = plan_reads(slide, path, 0.25, 0.5, (64, 64))
        assert plan.downsample == slide.level_downsamples[plan.level]


def test_an_overview_is_the_same_in_one_strip_or_many(tmp_path, write_slide, monkeypatch):
    path = write_slide(tmp_path / "a.tiff", size=1000, levels=1)
    whole, unreadable = read_overview(path, 0.5, 4.0)
    assert whole.shape == (125, 125, 3) and not unreadable.any()
    monkeypatch.setattr(overview, "_STRIP_PIXELS", 1000 * 80)
    np.testing.assert_array_equal(read_overview(path, 0.5, 4.0)[0], whole)
    assert read_overview(path, 8.0, 4.0)[0].shape == (1000, 1000, 3)


def test_damaged_parts_of_an_overview_are_marked_unreadable(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", size=1024, levels=1)
    whole, _ = read_overview(path, 0.5, 2.0)
    damage(path, 0, [27])  # of 8 x 8 compressed tiles of 128 pixels
    pixels, unreadable = read_overview(path, 0.5, 2.0)
    assert unreadable[3 * 32 : 4 * 32, 3 * 32 : 4 * 32].all() and unreadable.sum() < 48 * 48
    assert (pixels[unreadable] == 255).all()
    assert np.abs(pixels[~unreadable].astype(int) - whole[~unreadable]).max() < 40
    damage(path, 0, range(64))
    with pytest.raises(SlideError, match=r"cannot read .*a\.tiff.*damaged"):
        read_overview(path, 0.5, 2.0)


def fake_slide(**properties):
    return types.SimpleNamespace(properties={f"openslide.{k}": v for k, v in properties.items()})


@pytest.mark.parametrize(
    "mpp", ["0", "-0.5", "nan", "352.8", "1000", "5", "1.27", "0.05", "unknown", "1e-320"]
)
def test_an_implausible_resolution_is_none_and_can_be_overwritten(mpp):
    slide = fake_slide(**{"mpp-x": mpp, "mpp-y": mpp})
    assert not has_mpp(slide)
    assert slide_mpp(slide, "a.svs", 0.25) == 0.25
    with pytest.raises(SlideError, match=r"microns per pixel in its metadata.*OVERWRITE_MPP") as e:
        slide_mpp(slide, "a.svs", None)
    assert e.value.problem == "no resolution"


def test_an_implausible_resolution_is_told():
    with pytest.raises(SlideError, match=r"has implausible .*: 5 x 5, expected 0\.08 to 1\.25\."):
        slide_mpp(fake_slide(**{"mpp-x": "5", "mpp-y": "5"}), "a.svs", None)


@given(st.floats(0.08, 1.25), st.floats(0.08, 1.25))
def test_pixels_are_square_or_refused(x, y):
    slide = fake_slide(**{"mpp-x": str(x), "mpp-y": str(y)})
    try:
        assert min(x, y) * 0.999 <= slide_mpp(slide, "a.svs", 0.5) <= max(x, y) * 1.001
        assert max(x, y) <= 1.05 * min(x, y)
    except SlideError as error:
        assert error.problem == "wrong resolution" and f"{x:g} x {y:g}" in str(error)
        assert max(x, y) > 1.05 * min(x, y)


@pytest.mark.parametrize(("power", "mpp"), [("40", 0.5), ("20", 0.25), ("20", 1.0)])
def test_overwrite_mpp_that_contradicts_the_objective_is_refused(power, mpp):
    slide = fake_slide(**{"objective-power": power})
    with pytest.raises(
        SlideError, match=rf"{power}x.*contradicts the {mpp:g} of OVERWRITE_MPP"
    ) as error:
        slide_mpp(slide, "a.svs", mpp)
    assert error.value.problem == "wrong resolution"


def test_overwrite_mpp_close_to_that_of_the_objective_is_used():
    assert slide_mpp(fake_slide(**{"objective-power": "20"}), "a.svs", 0.46) == 0.46
    assert slide_mpp(fake_slide(**{"objective-power": "?"}), "a.svs", 0.25) == 0.25
    with pytest.raises(SlideError, match=r"OVERWRITE_MPP.*0\.25\."):
        slide_mpp(fake_slide(**{"objective-power": "40"}), "a.svs", None)


def test_an_error_keeps_its_problem_between_processes():
    error = SlideError("damaged", "Slide a.svs is damaged.")
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.problem, str(copied)) == ("damaged", "Slide a.svs is damaged.")


def test_a_file_that_is_not_a_slide_is_a_clear_error(tmp_path):
    path = tmp_path / "broken.svs"
    path.write_bytes(b"not a slide")
    with pytest.raises(UserError, match=r"cannot open .*broken\.svs"):
        open_slide(path)
    with pytest.raises(UserError, match=r"gone\.svs does not exist"):
        open_slide(tmp_path / "gone.svs")


def test_what_the_system_withholds_is_not_blamed_on_the_format(tmp_path):
    (tmp_path / "a.svs").mkdir()
    with pytest.raises(SlideError, match=r"a\.svs cannot be read: Is a directory\. .*again"):
        open_slide(tmp_path / "a.svs")


def test_too_many_open_files_are_not_blamed_on_the_format(tmp_path, monkeypatch):
    def fail(path):
        raise openslide.OpenSlideError(f"Couldn't open {path}: Too many open files")

    (tmp_path / "a.svs").write_bytes(b"whole")
    monkeypatch.setattr(openslide, "OpenSlide", fail)
    with pytest.raises(SlideError, match=r"a\.svs cannot be read: Too many open files\."):
        open_slide(tmp_path / "a.svs")


def test_real_slide_without_mpp(real_slides):
    path = real_slides / "TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path) as slide, pytest.raises(UserError, match="overwrite_mpp"):
        slide_mpp(slide, path, None)
