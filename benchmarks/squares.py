"""Measures what it gives that squares of tiles end where the file's own tiles do (`squares.py`).

One full-size slide is made of real ones. The same tiles are read in the order of squares of 8 and
in that of squares that meet the file's tiles, by the reader alone, on one core, in turns. Rates are
by processor time; the ratio is taken within a round, and reported as the median.

Run: taskset -c 0 python benchmarks/squares.py --slides DIR
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from cohorts import make_full_size, min_sharpness
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide import ReadPlan, read_tile
from g2l_plugin.slides.squares import number_squares
from g2l_plugin.slides.tiff import DecodedTiles, TiffSlide
from g2l_plugin.slides.tile_grid import TileGrid

SIDE = 256
ROWS = 120
"""Rows of the grid whose tiles are read: squares of 8, and of 8 and 7 in turn, end there."""


def in_order(xy: np.ndarray, plan: ReadPlan) -> np.ndarray:
    square = number_squares(xy, plan)
    return xy[np.lexsort([xy[:, 0], xy[:, 1], square[:, 0], square[:, 1]])]


def read_all(path: Path, plan: ReadPlan, xy: np.ndarray) -> float:
    """Reads tiles; returns tiles per second of processor time."""
    out = np.empty((3, SIDE, SIDE), np.uint8)
    with TiffSlide(path, DecodedTiles()) as slide:
        start = time.process_time()
        for x, y in xy.tolist():
            read_tile(slide, plan, x, y, (SIDE, SIDE), out)
        return len(xy) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=Path, required=True, help="folder of real slides")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    table = Table(
        "um/px", "tiles/s in squares of 8", "that meet the file's tiles", "ratio", "tiles"
    )
    with tempfile.TemporaryDirectory() as work:
        slides = make_full_size(options.slides, Path(work) / "slides")
        for target in (0.25, 0.5):
            grid = TileGrid(SIDE, SIDE, target, min_sharpness=min_sharpness(True))
            index = build_index(Path(work) / f"index_{target}", grid, slides, n_slides=1)
            (slide,) = index.load()
            plans = (dataclasses.replace(slide.plan, file_tile=None), slide.plan)
            xy = slide.xy[slide.xy[:, 1] < ROWS * slide.plan.level0_size[1]]
            ways = [(plan, in_order(xy, plan)) for plan in plans]
            rates = [
                [read_all(slide.path, *way) for way in ways]
                for _ in tqdm(range(options.rounds), f"{target} um/px")
            ]
            ratio = statistics.median(new / old for old, new in rates)
            old, new = (statistics.median(of_way) for of_way in zip(*rates, strict=True))
            table.add_row(f"{target}", f"{old:,.0f}", f"{new:,.0f}", f"{ratio:.2f}", f"{len(xy):,}")
    Console().print(table)


if __name__ == "__main__":
    main()
