"""Measures shuffled tiles per second and core, side by side with what a user would use instead.

- plain: `read_region` of OpenSlide on a held handle, slide by slide, row by row: the limit.
- ours: `TileLoader`, shuffled batches of 32 of a `TileDataset`.
- eva: `eva.vision.datasets.MultiWsiDataset`, shuffled.
- packed: the same, of what `g2l pack` wrote.

Each takes its turn in each round, on one core. Run: python benchmarks/tile_reading.py --slides DIR
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import torch
from cohorts import add_slides_argument, copy_slides
from eva.vision.data.datasets import MultiWsiDataset
from eva.vision.data.wsi.patching.samplers import ForegroundGridSampler
from rich.console import Console
from rich.table import Table

from g2l_plugin import TileDataset, TileLoader
from g2l_plugin.slides.pack import pack_tiles


def read_plain(dataset: TileDataset) -> int:
    tiles = dataset.tiles
    number, slide = -1, None
    row_by_row = np.lexsort([tiles.xy[:, 0], tiles.xy[:, 1], tiles.slide_of_tile])
    for index in row_by_row.tolist():
        slide_number, xy = tiles.slide_of_tile[index].item(), tiles.xy[index].tolist()
        if slide_number != number:
            number, slide = slide_number, openslide.OpenSlide(str(tiles.paths[slide_number]))
            plan = tiles.reader._plans[slide_number]
        slide.read_region(tuple(xy), plan.level, plan.read_size)
    return len(tiles)


def read_batches(loader: TileLoader) -> int:
    return sum(len(batch) for batch in loader)


def read_eva(dataset: MultiWsiDataset, rng: np.random.Generator, n_tiles: int) -> int:
    for index in rng.permutation(len(dataset))[:n_tiles].tolist():
        dataset[index]
    return n_tiles


def make_readers(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], int]]:
    slides = copy_slides(options.slides, folder / "slides", options.n_slides)
    common = {
        "overwrite_mpp": options.overwrite_mpp,
        "keep_duplicates": True,
        "index_dir": str(folder / "index"),
        "split": "train",
    }
    dataset = TileDataset(str(slides), **common)
    dataset.prepare_data()
    dataset.setup()
    pack_tiles(folder / "index", folder / "packed")
    packed = TileDataset(str(slides), packed_root=str(folder / "packed"), **common)
    packed.setup()
    eva = MultiWsiDataset(
        str(slides),
        [path.name for path in sorted(slides.iterdir())],
        256,
        256,
        ForegroundGridSampler(),
        0.5,
        overwrite_mpp=options.overwrite_mpp,
    )
    readers = {
        "plain": functools.partial(read_plain, dataset),
        "ours": functools.partial(read_batches, TileLoader(dataset)),
        "packed": functools.partial(read_batches, TileLoader(packed)),
    }
    try:
        eva.setup()
    except ValueError as error:  # its OpenSlide backend does not use `overwrite_mpp`
        print(f"eva cannot read these slides: {error}")
    else:
        rng = np.random.default_rng(0)
        readers["eva"] = functools.partial(read_eva, eva, rng, options.eva_tiles)
    return readers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_slides_argument(parser)
    parser.add_argument("--n-slides", type=int, default=48)
    parser.add_argument("--overwrite-mpp", type=float, default=0.5)
    parser.add_argument("--eva-tiles", type=int, default=200, help="tiles of a round for eva")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder), options)
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.rounds):
            for name, read in readers.items():
                start = time.perf_counter()
                n_tiles = read()
                rates[name].append(n_tiles / (time.perf_counter() - start))
    table = Table(title=f"Tiles/s on one core, {options.n_slides} slides, {options.rounds} rounds")
    for column in ("reader", "median", "min to max", "of plain", "of eva"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        table.add_row(
            name,
            f"{medians[name]:.0f}",
            f"{min(values):.0f} to {max(values):.0f}",
            f"{medians[name] / medians['plain']:.2f}",
            f"{medians[name] / medians['eva']:.1f}" if "eva" in medians else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
