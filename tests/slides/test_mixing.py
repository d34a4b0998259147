import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.slides.mixing import MixingBuffer, shuffled_blocks

SIZES = st.lists(st.integers(0, 50), min_size=0, max_size=12)


@given(SIZES, st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_devices_share_all_tiles_except_a_remainder(sizes, block_tiles, n_devices, seed):
    parts = [
        shuffled_blocks(np.array(sizes), block_tiles, np.random.default_rng(seed), rank, n_devices)
        for rank in range(n_devices)
    ]
    tiles = [np.concatenate([*blocks, np.empty(0, np.int64)]) for blocks in parts]
    assert {len(part) for part in tiles} == {sum(sizes) // n_devices}
    together = np.concatenate(tiles)
    assert len(set(together.tolist())) == len(together) > sum(sizes) - n_devices
    assert set(together.tolist()) <= set(range(sum(sizes)))


@given(SIZES, st.integers(1, 20))
def test_a_block_has_neighbours_of_one_group(sizes, block_tiles):
    slide = np.repeat(np.arange(len(sizes)), sizes)
    for block in shuffled_blocks(np.array(sizes), block_tiles, np.random.default_rng(0)):
        assert 0 < len(block) <= block_tiles
        assert (np.diff(block) == 1).all()
        assert len(set(slide[block].tolist())) == 1


@given(SIZES, st.integers(1, 60), st.integers(0, 3))
def test_a_group_that_is_no_larger_than_a_block_is_not_cut(sizes, block_tiles, seed):
    blocks = shuffled_blocks(np.array(sizes, int), block_tiles, np.random.default_rng(seed))
    spans = {(int(block[0]), int(block[-1]) + 1) for block in blocks}
    ends = np.cumsum(sizes).tolist()
    for size, end in zip(sizes, ends, strict=True):
        if 0 < size <= block_tiles:
            assert (end - size, end) in spans


@given(SIZES, st.integers(1, 9), st.integers(1, 9), st.integers(0, 60), st.integers(0, 3))
def test_a_buffer_yields_every_tile_once_in_full_batches(sizes, block, batch_size, capacity, seed):
    rng = np.random.default_rng(seed)
    blocks = shuffled_blocks(np.array(sizes), block, rng)
    buffer = MixingBuffer(blocks, batch_size, capacity, rng)
    drawn, memory = [], np.full(len(buffer.content), -1)
    waiting = list(blocks)
    while len(drawn) * batch_size < sum(sizes):
        for slots in buffer.fill():
            assert (memory[slots] == -1).all()  # no tile is overwritten before it is drawn
            memory[slots] = waiting.pop(0)
        slots = buffer.draw()
        np.testing.assert_array_equal(memory[slots], buffer.content[slots])
        drawn.append(memory[slots])
        memory[slots] = -1
        assert (memory[buffer.full_slots] >= 0).all()
    assert [len(batch) for batch in drawn[:-1]] == [batch_size] * (len(drawn) - 1)
    assert sorted(np.concatenate([*drawn, []]).tolist()) == list(range(sum(sizes)))


def test_every_tile_of_a_full_buffer_is_equally_likely():
    counts = np.zeros(40)
    for seed in range(2000):
        buffer = MixingBuffer([np.arange(40)], 10, 40, np.random.default_rng(seed))
        list(buffer.fill())
        counts[buffer.content[buffer.draw()]] += 1
    assert counts.sum() == 20000
    # Each count is binomial: 500 on average, standard deviation 19.
    assert np.abs(counts - 500).max() < 80


def test_batches_mix_about_as_many_slides_as_a_full_shuffle():
    sizes, batch = np.full(1000, 1000), 32
    rng = np.random.default_rng(0)
    buffer = MixingBuffer(shuffled_blocks(sizes, 32, rng), batch, 8192, rng)
    slide = np.repeat(np.arange(len(sizes)), sizes)
    slides = []
    for _ in range(500):
        list(buffer.fill())
        slides.append(len(set(slide[buffer.content[buffer.draw()]].tolist())))
    full = len(sizes) * (1 - (1 - 1 / len(sizes)) ** batch)
    assert np.mean(slides) == pytest.approx(full, rel=0.05)
