"""Measures how many slides per minute are indexed, with one process and with all cores.

Indexes copies of the given slides, and links to one slide as large as a scanner's. The speed is
compared with the time OpenSlide needs to read the same pixels: the overview, and every tissue tile
at the resolution used to measure sharpness.

Run: python benchmarks/indexing.py --slides DIR
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import openslide
from cohorts import add_arguments, copy_slides, make_full_size, min_sharpness
from rich.console import Console
from rich.table import Table

from g2l_plugin.slides.index import Index
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.overview import read_overview
from g2l_plugin.slides.tile_grid import TileGrid
from g2l_plugin.slides.tissue import FOCUS_MPP, OVERVIEW_MPP


def reading_seconds(index: Index) -> float:
    """Measures how long one process reads the pixels that the index is made from."""
    start = time.perf_counter()
    for slide in index.load():
        mpp = next(
            record.mpp
            for chosen, record in zip(index.cohort, index.records, strict=True)
            if index.root / chosen.slide == slide.path
        )
        read_overview(slide.path, mpp, OVERVIEW_MPP)
        with openslide.OpenSlide(str(slide.path)) as handle:
            level = handle.get_best_level_for_downsample(1.1 * FOCUS_MPP / mpp)
            downsample = handle.level_downsamples[level]
            size = tuple(round(length / downsample) for length in slide.plan.level0_size)
            for x, y in slide.xy.tolist():
                handle.read_region((x, y), level, size)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, n_slides=48)
    parser.add_argument("--n-full-size", type=int, default=6)
    options = parser.parse_args()
    table = Table(title="Slides indexed per minute")
    for column in ("slides", "tiles each", "processes", "slides/min", "of reading alone"):
        table.add_column(column, justify="left" if column == "slides" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = make_full_size(options.slides, folder / "one")
        cohorts = {
            "as given": copy_slides(options.slides, folder / "given", options.n_slides),
            "full size": copy_slides(one, folder / "large", options.n_full_size, link=True),
        }
        for name, slides in cohorts.items():
            grid = TileGrid(
                overwrite_mpp=options.overwrite_mpp,
                min_sharpness=min_sharpness(full_size=name == "full size"),
            )
            limit = None
            for workers in sorted({1, os.cpu_count() or 1}):
                start = time.perf_counter()
                index = build_index(
                    folder / f"{name} {workers}",
                    grid,
                    slides,
                    one_per_patient=False,
                    keep_duplicates=True,
                    workers=workers,
                )
                seconds = time.perf_counter() - start
                n_slides, n_tiles = len(index.records), sum(r.tiles for r in index.records)
                limit = limit or reading_seconds(index)
                table.add_row(
                    f"{n_slides} {name}",
                    f"{n_tiles / n_slides:,.0f}",
                    str(workers),
                    f"{60 * n_slides / seconds:.1f}",
                    f"{limit / seconds:.2f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
