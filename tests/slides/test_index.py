import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.slides import index as index_lib
from g2l_plugin.slides.index import TileGrid, build_index, index_slide


def test_tiles_lie_on_the_grid_and_on_tissue(tmp_path, write_slide):
    size = 1024
    index = index_slide(write_slide(tmp_path / "a.tiff", size), TileGrid(64, 64, min_tissue=0.9))
    assert len(index.xy) > 50
    assert (index.xy % 64 == 0).all()
    assert len(np.unique(index.xy, axis=0)) == len(index.xy)
    centres = index.xy + 32
    assert (np.hypot(*(centres - size / 2).T) < size * 0.4).all()
    # The disk holds 0.16 pi of the slide's area; tiles on its rim are left out.
    assert 0.75 < len(index.xy) * 64**2 / (np.pi * (size * 0.4) ** 2) <= 1.0


def test_an_index_is_read_again_and_not_written_again(tmp_path, write_slide):
    paths = [write_slide(tmp_path / f"{name}.tiff", 512) for name in "ab"]
    first = build_index(paths, TileGrid(64, 64), tmp_path / "index")
    files = sorted((tmp_path / "index").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    second = build_index(paths, TileGrid(64, 64), tmp_path / "index")
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "index").iterdir())] == stamps
    assert len(files) == 2
    for a, b in zip(first, second, strict=True):
        assert (a.path, a.plan) == (b.path, b.plan)
        np.testing.assert_array_equal(a.xy, b.xy)


def test_another_grid_or_a_changed_slide_is_indexed_anew(tmp_path, write_slide):
    path = write_slide(tmp_path / "a.tiff", 512)
    build_index([path], TileGrid(64, 64), tmp_path / "index")
    build_index([path], TileGrid(128, 128), tmp_path / "index")
    write_slide(path, 768)
    (index,) = build_index([path], TileGrid(64, 64), tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert index.xy.max() > 512


def test_a_bad_slide_stops_the_index_and_leaves_no_half_file(tmp_path, write_slide):
    good = write_slide(tmp_path / "a.tiff", 512)
    bad = tmp_path / "b.svs"
    bad.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"b\.svs"):
        build_index([good, bad], TileGrid(64, 64), tmp_path / "index", workers=1)
    assert [file.suffix for file in (tmp_path / "index").iterdir()] == [".parquet"]


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
    means = index_lib._area_means(mask, xy, size, (width, height))
    expected = [mask[b // 8 : b // 8 + tile, a // 8 : a // 8 + tile].mean() for a, b in xy]
    np.testing.assert_allclose(means, expected)


def test_real_slides_have_tissue(real_slides):
    paths = sorted(real_slides.glob("*.svs"))
    for path in paths:
        index = index_slide(path, TileGrid(overwrite_mpp=0.5))
        assert len(index.xy) > 30
