import numpy as np
import pytest
import tifffile
from helpers import damage
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from g2l_plugin.slides import tile_grid
from g2l_plugin.slides.slide import ReadPlan, SlideError
from g2l_plugin.slides.tile_grid import TileGrid, index_slide


def test_tiles_lie_on_the_grid_and_on_tissue(tmp_path, write_slide):
    size = 1024
    grid = TileGrid(64, 64, min_tissue=0.9, min_sharpness=0)
    record, tiles, _ = index_slide(write_slide(tmp_path / "a.tiff", size), grid)
    xy = np.stack([tiles["x"], tiles["y"]], axis=1)
    assert record.tiles == len(xy) > 50
    assert (xy % 64 == 0).all()
    assert len(np.unique(xy, axis=0)) == len(xy)
    assert (np.hypot(*(xy + 32 - size / 2).T) < size * 0.4).all()
    # The disk holds 0.16 pi of the slide's area; tiles on its rim are left out.
    assert 0.75 < len(xy) * 64**2 / (np.pi * (size * 0.4) ** 2) <= 1.0
    assert (tiles["tissue"] >= 0.9).all()
    assert record.little_tissue > 0


def test_tiles_close_in_the_table_are_close_in_the_slide():
    plan = ReadPlan(0, (256, 256), (256, 256))
    order = tile_grid._square_by_square(
        tile_grid._grid_corners((20 * 256, 13 * 256), (256, 256)), plan
    )
    assert sorted(order.tolist()) == list(range(260))
    row, column = np.divmod(order, 20)
    first = order[:64]
    assert set(zip(*np.divmod(first, 20), strict=True)) == {
        (r, c) for r in range(8) for c in range(8)
    }
    squares = list(zip((row // 8).tolist(), (column // 8).tolist(), strict=True))
    assert len([n for n in range(1, 260) if squares[n] != squares[n - 1]]) == 3 * 2 - 1


def paint(path, ink=False, blur=False, size=1024):
    """Writes a slide full of tissue whose right half is inked or out of focus."""
    rng = np.random.default_rng(0)
    grain = ndimage.gaussian_filter(rng.standard_normal((size, size)), 1)
    nuclei = ndimage.gaussian_filter(rng.standard_normal((size, size)), 4)
    light = 0.5 * grain / grain.std() + nuclei / nuclei.std()
    if blur:
        light[:, size // 2 :] = ndimage.gaussian_filter(light, 5)[:, size // 2 :]
    image = np.array([205, 115, 165]) + 22 * light[..., None]
    if ink:
        image[:, size // 2 :] = (20, 120, 60)
    tifffile.imwrite(
        path,
        np.clip(image, 0, 255).astype(np.uint8),
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    return path


def test_ink_is_left_out_and_counted(tmp_path):
    record, tiles, picture = index_slide(paint(tmp_path / "a.tiff", ink=True), TileGrid(128, 128))
    assert tiles["x"].max() < 512
    assert 32 <= record.ink <= 40  # with the edge of the stroke
    assert record.tiles + record.ink == 64
    blue = np.asarray(picture).astype(int)[:, 300:]
    assert ((blue[..., 2] > 200) & (blue[..., 0] < 60)).sum() > 100  # crossed out


def test_tiles_out_of_focus_are_left_out_and_counted(tmp_path):
    path = paint(tmp_path / "a.tiff", blur=True)
    record, tiles, _ = index_slide(path, TileGrid(128, 128))
    assert record.tiles == 32 and record.blurred == 32 and tiles["x"].max() < 512
    assert (tiles["sharpness"] >= 0.1).all()
    assert index_slide(path, TileGrid(128, 128, min_sharpness=0))[0].tiles == 64


def test_a_slide_without_tissue_has_no_tiles(tmp_path):
    glass = np.full((512, 512, 3), 244, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tiff",
        glass,
        tile=(256, 256),
        photometric="rgb",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    record, tiles, _ = index_slide(tmp_path / "a.tiff", TileGrid(64, 64))
    assert record.tiles == 0 and len(tiles["x"]) == 0 and not record.problem
    assert "none of it has the colour of tissue" in record.message


def test_a_slide_smaller_than_a_tile_is_told(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", 200)
    with pytest.raises(SlideError, match=r"200 x 200 pixels, fewer than a tile's 256 x 256") as e:
        index_slide(path, TileGrid(256, 256))
    assert e.value.problem == "too small"


def write_levels(path, *levels):
    options = {"tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    options["photometric"] = "rgb" if levels[0].ndim == 3 else "minisblack"
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            writer.write(level, subfiletype=int(number > 0), **options)
    return path


@pytest.mark.parametrize("empty", [0, 255])
def test_an_empty_level_is_not_taken_for_a_slide_without_tissue(tmp_path, empty):
    image = tifffile.imread(paint(tmp_path / "whole.tiff"))
    levels = [np.full_like(image[:: 2**n, :: 2**n], empty) for n in (2, 4)]
    path = write_levels(tmp_path / "a.tiff", image, *levels)
    with pytest.raises(SlideError, match=r"Level 2 of slide .* is empty, but level 0 is not"):
        index_slide(path, TileGrid(128, 128))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_slide_is_told(tmp_path, dtype):
    grey = tifffile.imread(paint(tmp_path / "whole.tiff"))[..., 1].astype(dtype)
    path = write_levels(tmp_path / "a.tiff", grey * (np.iinfo(dtype).max // 255))
    with pytest.raises(SlideError, match="is grey, and tissue is found by its colour") as error:
        index_slide(path, TileGrid(128, 128))
    assert error.value.problem == "no colour"


def test_a_scan_of_16_bits_gives_the_tiles_of_8(tmp_path):
    image = tifffile.imread(paint(tmp_path / "8.tiff"))
    path = write_levels(tmp_path / "16.tiff", image.astype(np.uint16) * 257)
    assert index_slide(path, TileGrid(128, 128))[0].tiles == 64


def test_a_slide_without_tiles_says_why(tmp_path):
    path = paint(tmp_path / "a.tiff", ink=True)
    assert index_slide(path, TileGrid(128, 128))[0].message == ""
    inked = tifffile.imread(path)[:, 512:]
    record, _, _ = index_slide(write_levels(tmp_path / "b.tiff", inked), TileGrid(128, 128))
    assert record.outcome == "no tissue" and "32 ink, or another stain than H&E" in record.message


def test_tiles_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    path = paint(tmp_path / "a.tiff")
    whole, _, _ = index_slide(path, TileGrid(128, 128))
    damage(path, 0, [5])
    for sharpness in (0, 0.1):
        record, tiles, _ = index_slide(path, TileGrid(128, 128, min_sharpness=sharpness))
        assert (record.tiles, record.damaged) == (whole.tiles - 4, 4)
        # One of 4 x 4 compressed tiles of 256 pixels: the second of the second row.
        lost = (tiles["x"] // 256 == 1) & (tiles["y"] // 256 == 1)
        assert not lost.any()


@given(
    mask=st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=12)
    ),
    tile=st.integers(1, 4),
)
def test_area_means_equal_plain_means(mask, tile):
    mask = np.array(mask)
    height, width = (length * 8 for length in mask.shape)
    size = (tile * 8, tile * 8)
    x, y = np.meshgrid(
        np.arange(max(width // size[0], 1)) * size[0],
        np.arange(max(height // size[1], 1)) * size[1],
    )
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    means = tile_grid._area_means(mask, xy, size, (width, height))
    expected = [mask[b // 8 : b // 8 + tile, a // 8 : a // 8 + tile].mean() for a, b in xy]
    np.testing.assert_allclose(means, expected)


def test_real_slides_have_tissue_in_focus(real_slides):
    for path in sorted(real_slides.glob("*.svs")):
        record, _, _ = index_slide(path, TileGrid(overwrite_mpp=0.5))
        assert record.tiles > 30
        assert record.blurred + record.ink <= record.tiles * 0.05
