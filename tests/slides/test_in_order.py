import numpy as np
import pytest
import torch
from helpers import damage

from g2l_plugin.slides.in_order import read_in_order
from g2l_plugin.slides.index import SlideIndex
from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.slide_source import SlideTiles


@pytest.fixture
def paths(tmp_path, write_slide):
    return [write_slide(tmp_path / f"{name}.tiff", 256, levels=1) for name in "ab"]


def tiles_of(paths):
    """4 x 4 tiles of each slide; its compressed tiles hold four each."""
    y, x = np.mgrid[:256:64, :256:64]
    xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    plan = ReadPlan(0, (64, 64), (64, 64))
    return SlideTiles([SlideIndex(path, plan, xy) for path in paths], (64, 64))


BLOCKS = [np.arange(start, stop) for start, stop in ((0, 7), (7, 16), (16, 20), (20, 32))]


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_come_in_order_with_their_own_tiles(paths, workers):
    tiles = tiles_of(paths)
    found = list(read_in_order(tiles, (64, 64), BLOCKS, workers))
    assert [numbers.tolist() for numbers, _ in found] == [block.tolist() for block in BLOCKS]
    for numbers, batch in found:
        assert torch.equal(batch, torch.stack([tiles.read(n) for n in numbers.tolist()]))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_tiles_are_left_out_and_no_other_is_read_for_them(paths, workers):
    intact = [tiles_of(paths).read(number) for number in range(32)]
    damage(paths[0], 0, [3])  # tiles 10, 11, 14, 15
    paths[1].unlink()
    tiles = tiles_of(paths)
    found = list(read_in_order(tiles, (64, 64), BLOCKS, workers))
    assert [numbers.tolist() for numbers, _ in found] == [[*range(7)], [7, 8, 9, 12, 13], [], []]
    for numbers, batch in found:
        assert len(numbers) == len(batch)
        assert all(torch.equal(t, intact[n]) for n, t in zip(numbers, batch, strict=True))
