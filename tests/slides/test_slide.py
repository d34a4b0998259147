import numpy as np
import pytest

from g2l_plugin.errors import UserError
from g2l_plugin.slides import slide as slide_lib


def test_mpp_comes_from_metadata_even_when_another_is_given(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", mpp=0.25)
    with slide_lib.open_slide(path) as slide:
        assert slide_lib.slide_mpp(slide, path, overwrite_mpp=0.5) == pytest.approx(0.25)


def test_missing_mpp_names_the_setting_that_gives_it(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", mpp=None)
    with slide_lib.open_slide(path) as slide:
        with pytest.raises(UserError, match=r"a\.tiff .*overwrite_mpp"):
            slide_lib.slide_mpp(slide, path, overwrite_mpp=None)
        assert slide_lib.slide_mpp(slide, path, overwrite_mpp=0.5) == 0.5


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
    with slide_lib.open_slide(path) as slide:
        plan = slide_lib.plan_reads(slide, path, mpp, target_mpp, (256, 256))
    assert (plan.level, plan.read_size) == (level, (read_size, read_size))
    assert plan.level0_size == (read_size * 2**level,) * 2


def test_a_slide_coarser_than_the_target_is_refused(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff")
    with (
        slide_lib.open_slide(path) as slide,
        pytest.raises(UserError, match=r"1\.000 microns per pixel, coarser than the 0\.500"),
    ):
        slide_lib.plan_reads(slide, path, 1.0, 0.5, (256, 256))


def test_a_tile_beyond_the_edge_is_white(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", size=256)
    with slide_lib.open_slide(path) as slide:
        plan = slide_lib.plan_reads(slide, path, 0.5, 0.5, (64, 64))
        tile = slide_lib.read_tile(slide, plan, 240, 0, (64, 64))
    assert tile.shape == (64, 64, 3)
    assert tile.dtype == np.uint8
    assert (tile[:, 16:] == 255).all()


def test_a_file_that_is_no_slide_gives_a_clear_error(tmp_path):
    path = tmp_path / "broken.svs"
    path.write_bytes(b"not a slide")
    with pytest.raises(UserError, match=r"cannot open .*broken\.svs"):
        slide_lib.open_slide(path)
    with pytest.raises(UserError, match=r"gone\.svs does not exist"):
        slide_lib.open_slide(tmp_path / "gone.svs")


def test_real_slide_without_mpp(real_slides):
    path = real_slides / "TCGA-CR-7395-01A-01-TS1.svs"
    with slide_lib.open_slide(path) as slide, pytest.raises(UserError, match="overwrite_mpp"):
        slide_lib.slide_mpp(slide, path, None)
