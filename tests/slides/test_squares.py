import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.squares import SQUARE, number_squares


def grid(columns, rows, step):
    x, y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


def decoded(tile, file_tile, squares_of):
    """How many of a row's own tiles a reader decodes that starts anew in every square."""
    plan = ReadPlan(0, (tile, tile), (tile, tile), file_tile=squares_of)
    square = number_squares(grid(120, 1, tile), plan)[:, 0]
    seen = {
        (square[column], own)
        for column in range(120)
        for own in range(column * tile // file_tile, -(-(column + 1) * tile // file_tile))
    }
    return len(seen)


@given(
    tile=st.integers(16, 1024),
    file_tile=st.none() | st.tuples(st.integers(16, 1024), st.integers(16, 1024)),
    downsample=st.integers(1, 4),
)
def test_squares_cover_the_grid_and_are_not_larger_than_eight_by_eight(tile, file_tile, downsample):
    step = tile * downsample
    plan = ReadPlan(0, (tile, tile), (step, step), file_tile=file_tile)
    xy = grid(40, 23, step)
    square = number_squares(xy, plan)
    for axis in (0, 1):
        line = xy[:, axis] // step
        numbers = np.array([square[line == n, axis][0] for n in range(line.max() + 1)])
        assert (square[:, axis] == numbers[line]).all()  # whole columns, whole rows
        assert set(np.diff(numbers)) <= {0, 1} and numbers[0] == 0
        assert np.bincount(numbers).max() <= SQUARE


def test_squares_meet_the_edges_of_the_files_own_tiles():
    n_whole = 120 * 256 // 240  # each of a row's own tiles once
    assert decoded(256, 240, None) == n_whole + 14  # an inner edge of squares of 8 cuts one
    assert decoded(256, 240, (240, 240)) == n_whole + 8
    assert decoded(512, 240, (240, 240)) == 2 * n_whole + 8
    assert decoded(224, 256, (256, 256)) == 120 * 224 // 256
    assert decoded(192, 240, (240, 240)) == 120 * 192 // 240  # squares of 5
