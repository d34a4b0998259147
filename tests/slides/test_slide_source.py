import dataclasses

import numpy as np
import openslide
import pytest
import torch
from helpers import damage

from g2l_plugin.errors import UserError
from g2l_plugin.slides.index import SlideIndex
from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.slide_source import SlideTiles

PLAN = ReadPlan(0, (64, 64), (64, 64))


@pytest.fixture
def make_tiles(tmp_path, write_slide):
    """Tiles of three slides of 8 x 8 tiles; compressed tiles hold four each."""

    def make(**options):
        y, x = np.mgrid[:512:64, :512:64]
        xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
        slides = []
        for name in "abc":
            path = tmp_path / f"{name}.tiff"
            if not path.exists():
                write_slide(path, 512, levels=1)
            slides.append(SlideIndex(path, PLAN, xy))
        return SlideTiles(slides, (64, 64), **options)

    return make


def places(tiles):
    """Slide and upper left corner of the lost tiles."""
    located = tiles.locate(tiles.lost())
    return list(located[["slide", "x", "y"]].itertuples(index=False, name=None))


def test_tiles_are_known_by_slides_of_one_size_read_in_one_way(tmp_path):
    xy = np.zeros((1, 2), np.int32)
    slide = SlideIndex(tmp_path / "a.tiff", PLAN, xy, 1000)
    same = dataclasses.replace(slide, path=tmp_path / "moved" / "a.tiff")
    other_file = dataclasses.replace(slide, bytes=1001)
    coarser = dataclasses.replace(slide, plan=dataclasses.replace(PLAN, level=PLAN.level + 1))
    prints = [SlideTiles([s], (64, 64)).fingerprint() for s in (slide, same, other_file, coarser)]
    assert prints[0] == prints[1]
    assert len({*prints}) == 3


def test_tiles_of_a_slide_have_consecutive_numbers(make_tiles):
    tiles = make_tiles()
    assert len(tiles) == 192 and tiles.group_sizes.tolist() == [64, 64, 64]
    tiles.keep(np.arange(10, 150))
    assert len(tiles) == 140 and tiles.group_sizes.tolist() == [54, 64, 22]
    with openslide.OpenSlide(str(tiles.paths[1])) as slide:
        expected = np.asarray(slide.read_region((64, 0), 0, (64, 64)).convert("RGB"))
    np.testing.assert_array_equal(tiles.read(55).numpy(), expected.transpose(2, 0, 1))


def test_a_group_is_a_square_of_eight_by_eight_tiles_or_some_that_have_few(tmp_path):
    plan = ReadPlan(0, (512, 512), (512, 512), 2)

    def slide(name, *tiles_of_squares):
        """As an index lists them: square by square, some of them full, others at an edge."""
        corners = [
            (512 * (8 * square + tile % 8), 512 * (tile // 8))
            for square, n in enumerate(tiles_of_squares)
            for tile in range(n)
        ]
        xy = np.array(corners, np.int32).reshape(-1, 2)
        return SlideIndex(tmp_path / name, plan, xy)

    slides = [slide("a", 64, 20, 40, 5, 60, 4), slide("none"), slide("b", 3, 61), slide("c", 2)]
    tiles = SlideTiles(slides, (256, 256))
    assert tiles.group_sizes.tolist() == [64, 60, 5, 64, 64, 2]
    tiles.keep(np.arange(70, len(tiles)))
    assert tiles.group_sizes.tolist() == [54, 5, 64, 64, 2]


def test_few_handles_serve_many_slides(make_tiles):
    few, many = make_tiles(max_open_slides=1), make_tiles(max_open_slides=8)
    order = torch.randperm(len(few)).tolist()[:60]
    assert all(torch.equal(few.read(i), many.read(i)) for i in order)
    assert (few.reader.n_open, many.reader.n_open) == (1, 3)
    assert few.reader.n_opened > many.reader.n_opened == 3


def test_a_neighbour_is_always_the_substitute_of_a_damaged_tile(make_tiles, tmp_path):
    intact = make_tiles()
    substitute = intact.read(17)
    path = intact.paths[0]
    damage(path, 0, [5])  # tiles (2, 2), (3, 2), (2, 3), (3, 3)
    tiles = make_tiles(max_lost=0.1)
    assert torch.equal(tiles.read(18), substitute)  # 19 is damaged too, 17 is not
    assert torch.equal(tiles.read(17), substitute)
    assert places(tiles) == [(path, 128, 128), (path, 192, 128)]
    assert torch.equal(make_tiles(max_lost=0.1).read(18), substitute)
    for index in range(64):
        tiles.read(index)
    assert places(tiles) == [(path, x, y) for y in (128, 192) for x in (128, 192)]
    assert tiles.lost().tolist() == [18, 19, 26, 27] and tiles.lost().dtype == np.int64
    assert tiles.substitutes(np.array([27, 17, 18])).tolist() == [True, False, True]


def test_a_failed_handle_does_not_affect_intact_tiles(make_tiles):
    expected = [make_tiles().read(index) for index in (0, 63)]
    damage(make_tiles().paths[0], 0, [5])
    tiles = make_tiles(max_lost=0.1)
    tiles.read(18)
    assert torch.equal(tiles.read(0), expected[0]) and torch.equal(tiles.read(63), expected[1])


def test_tiles_of_other_slides_are_substitutes_for_a_missing_slide(make_tiles):
    tiles = make_tiles(max_lost=0.4)
    content = tiles.paths[0].read_bytes()
    tiles.paths[0].unlink()
    substitute = tiles.read(3)
    assert torch.equal(tiles.read(3), substitute)
    others = {tuple(tiles.read(i).flatten().tolist()) for i in range(64, 192)}
    assert tuple(substitute.flatten().tolist()) in others
    assert len(tiles.lost()) == 64  # all of the slide
    tiles.paths[0].write_bytes(content)


def test_more_losses_than_allowed_stop_the_run_with_counts_and_the_last_reason(make_tiles):
    tiles = make_tiles(max_lost=0.011)
    damage(tiles.paths[1], 0, [5])
    tiles.read(64 + 18)  # and its neighbour
    with pytest.raises(UserError, match=r"3 of 192 tiles cannot be read, more than the 1\.1%") as e:
        tiles.read(64 + 27)
    assert "b.tiff is damaged at" in str(e.value) and "MAX_LOST" in str(e.value)


def test_an_error_asks_for_the_slides_when_nothing_can_be_read(make_tiles):
    tiles = make_tiles(max_lost=1)
    for path in tiles.paths:
        path.unlink()
    with pytest.raises(UserError, match=r"Bring the slides back.*resume"):
        tiles.read(0)
