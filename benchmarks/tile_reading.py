"""Measures shuffled tiles per second and core, next to the alternatives.

- plain: OpenSlide's `read_region` on an open slide, slide by slide and row by row.
- direct: the same by the reader of this package, square by square, as its index lists tiles; and
  without its cache, so that what neighbours share is decoded for each.
- ours: `TileLoader`, shuffled batches of 32 from a `TileDataset`.
- ours by OpenSlide: the same with `reader: openslide`.
- decoding: the limit. The slides' own tiles, in memory, are decoded once each, and nothing else is
  done. Left out if a slide's tiles are not decoded from its file.
- eva: `eva.vision.datasets.MultiWsiDataset`, shuffled.
- fastslide, tiffslide, cucim: their `read_region`, as plain, where they are installed.
- packed: ours, from shards written by `g2l pack`.

All take turns on one core. Ratios are taken within a round, because a machine's speed changes, and
reported as medians over the rounds. With --full-size, all slides are links to one as large as a
scanner's, and only some of the tiles are packed. With --cold, the system's page cache is emptied of
the files before each turn, and the time is that on the wall.

Run: python benchmarks/tile_reading.py --slides DIR
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from cohorts import add_arguments, copy_slides, make_full_size, min_sharpness
from eva.vision.data.datasets import MultiWsiDataset
from eva.vision.data.wsi.patching.samplers import ForegroundGridSampler
from rich.console import Console
from rich.table import Table

from g2l_plugin import TileDataset, TileLoader
from g2l_plugin.slides.pack import pack_tiles
from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.tiff import TiffSlide

BATCH_SIZE = 32

Read = Callable[[tuple[int, int], ReadPlan], Any]
"""Reads a region by its corner in pixels of level 0, and a plan."""


def open_openslide(path: Path) -> Read:
    slide = openslide.OpenSlide(str(path))
    return lambda xy, plan: slide.read_region(xy, plan.level, plan.read_size)


def open_fastslide(path: Path) -> Read:
    from fastslide import FastSlide

    slide = FastSlide.from_file_path(str(path))
    return lambda xy, plan: slide.read_region(
        plan.on_level(*xy), plan.level, plan.read_size
    ).numpy()


def open_tiffslide(path: Path) -> Read:
    from tiffslide import TiffSlide as Slide

    slide = Slide(str(path))
    return lambda xy, plan: slide.read_region(xy, plan.level, plan.read_size, as_array=True)


def open_cucim(path: Path) -> Read:
    from cucim import CuImage

    slide = CuImage(str(path))
    return lambda xy, plan: np.asarray(slide.read_region(xy, plan.read_size, plan.level))


def others() -> dict[str, Callable[[Path], Read]]:
    """The libraries that read slides and are installed here."""
    known = {"fastslide": open_fastslide, "tiffslide": open_tiffslide, "cucim": open_cucim}
    return {name: opener for name, opener in known.items() if importlib.util.find_spec(name)}


def read_plain(
    dataset: TileDataset, open_slide: Callable[[Path], Read] = open_openslide
) -> Iterator[int]:
    tiles = dataset.tiles
    row_by_row = np.lexsort([tiles.xy[:, 0], tiles.xy[:, 1], tiles.slide_of_tile])
    number = -1
    for index in itertools.cycle(row_by_row.tolist()):
        slide_number, xy = tiles.slide_of_tile[index].item(), tiles.xy[index].tolist()
        if slide_number != number:
            number, read = slide_number, open_slide(tiles.paths[slide_number])
            plan = tiles.reader._plans[slide_number]
        read(tuple(xy), plan)
        yield 1


def read_direct(dataset: TileDataset, cache_bytes: int) -> Iterator[int]:
    reader, tile = dataset.tiles.reader, np.empty(dataset.tile_shape, np.uint8)
    order = zip(dataset.tiles.slide_of_tile.tolist(), dataset.tiles.xy.tolist(), strict=True)
    for number, (slide, (x, y)) in enumerate(itertools.cycle(order)):
        reader.read(slide, x, y, tile)
        if number == 0:
            reader._decoded._max_bytes = cache_bytes
        yield 1


def decode_alone(dataset: TileDataset) -> Iterator[float] | None:
    """Decodes each tile of the files that is needed, once a pass; yields its share of a tile."""
    tiles, jobs, seen = dataset.tiles, [], set()
    for number, (path, plan) in enumerate(zip(tiles.paths, tiles.reader._plans, strict=True)):
        if plan.page is None:
            return None
        identity = (os.stat(path).st_ino, plan)  # links are the same slide
        n_tiles = int((tiles.slide_of_tile == number).sum())
        if identity in seen or not n_tiles:
            continue
        with TiffSlide(path) as slide:
            page = slide._page(plan.page)
            needed = set()
            for x, y in tiles.xy[tiles.slide_of_tile == number].tolist():
                left, top = plan.on_level(x, y)
                (width, height), (tile_w, tile_h) = plan.read_size, page.tile_size
                columns = range(left // tile_w, -(-(left + width) // tile_w))
                rows = range(top // tile_h, -(-(top + height) // tile_h))
                needed |= {row * page.columns + column for row in rows for column in columns}
            share = n_tiles / len(needed)
            seen.add(identity)
            size = [length // plan.reduction for length in page.tile_size]
            some = np.random.default_rng(0).permutation(sorted(needed))[:2000].tolist()
            data = [os.pread(slide._file, int(page.counts[n]), int(page.offsets[n])) for n in some]
        jobs.append((page, data, size, plan.reduction, share))

    def decode() -> Iterator[float]:
        while True:
            for page, data, size, reduction, share in jobs:
                for compressed in data:
                    page.decode(compressed, *size, reduction)
                    yield share

    return decode()


def read_batches(loader: TileLoader) -> Iterator[int]:
    for _ in itertools.count():
        yield from (len(batch.tiles) for batch in loader)


def read_eva(dataset: MultiWsiDataset) -> Iterator[int]:
    rng = np.random.default_rng(0)
    while True:
        dataset[int(rng.integers(len(dataset)))]
        yield 1


def make_readers(folder: Path, options: argparse.Namespace) -> dict[str, Iterator[float]]:
    source = options.slides
    if options.full_size:
        source = make_full_size(
            options.slides, folder / "full_size", options.jpeg2000, options.file_tile
        )
    slides = copy_slides(source, folder / "slides", options.n_slides, link=options.full_size)
    common = {
        "overwrite_mpp": options.overwrite_mpp,
        "target_mpp": options.target_mpp,
        "min_sharpness": min_sharpness(options.full_size),
        "keep_duplicates": True,
        "split": "train",
    }
    dataset = TileDataset(str(slides), index_dir=str(folder / "index"), **common)
    dataset.prepare_data()
    dataset.setup()
    by_openslide = TileDataset(
        str(slides), index_dir=str(folder / "index"), reader="openslide", **common
    )
    by_openslide.setup()
    datasets = {"ours": dataset, "ours by OpenSlide": by_openslide}
    if not options.without_packed:
        n_few = 2 if options.full_size else None
        few = TileDataset(str(slides), index_dir=str(folder / "few"), n_slides=n_few, **common)
        few.prepare_data()
        pack = folder / "packed"
        pack_tiles(folder / "few", pack)
        datasets["packed"] = TileDataset(
            str(slides), packed_root=str(pack), n_slides=n_few, **common
        )
        datasets["packed"].setup()
    loaders = {
        name: TileLoader(data, BATCH_SIZE, options.block_tiles, options.buffer_tiles)
        for name, data in datasets.items()
    }
    readers = {"plain": read_plain(dataset)}
    for name, cache_bytes in {"direct": 8 << 20, "direct, no cache": 0}.items():
        alone = TileDataset(str(slides), index_dir=str(folder / "index"), **common)
        alone.setup()  # with a reader of its own
        readers[name] = read_direct(alone, cache_bytes)
    for name, opener in others().items():
        reader = read_plain(dataset, opener)
        try:
            next(reader)
        except Exception as error:  # each has its own
            print(f"{name} cannot read these slides: {error}")
        else:
            readers[name] = reader
    readers |= {name: read_batches(loader) for name, loader in loaders.items()}
    if (decoding := decode_alone(dataset)) is not None:
        readers["decoding"] = decoding
    if options.without_eva:
        return readers
    eva = MultiWsiDataset(
        str(slides),
        [path.name for path in sorted(slides.iterdir())],
        256,
        256,
        ForegroundGridSampler(),
        0.5,
        overwrite_mpp=options.overwrite_mpp,
    )
    try:
        eva.setup()
    except ValueError as error:  # its OpenSlide backend ignores `overwrite_mpp`
        print(f"eva cannot read these slides: {error}")
    else:
        readers["eva"] = read_eva(eva)
    return readers


def measure(reader: Iterator[float], seconds: float, cold: Sequence[Path] = ()) -> float:
    """Measures tiles per second of CPU time, which other load on the machine does not change.

    With files that the system shall first forget, of wall time: what waits for the disk counts.
    """
    clock = time.perf_counter if cold else time.process_time
    for path in cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, n_tiles = clock(), 0
    while clock() - start < seconds:
        n_tiles += next(reader)
    return n_tiles / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, n_slides=48)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--cold", action="store_true", help="forget the files before each turn")
    parser.add_argument("--file-tile", type=int, default=240, help="of the full-size slide, px")
    parser.add_argument("--target-mpp", type=float, default=0.5, help="of the tiles")
    parser.add_argument("--jpeg2000", action="store_true", help="of the full-size slide")
    parser.add_argument("--without-packed", action="store_true", help="packing takes minutes")
    parser.add_argument("--without-eva", action="store_true", help="its setup takes minutes")
    parser.add_argument("--block-tiles", type=int, default=64)
    parser.add_argument("--buffer-tiles", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1, help="per reader and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder), options)
        # Links to the large slide are one file.
        files = {path.stat().st_ino: path for path in Path(folder).rglob("*") if path.is_file()}
        cold = list(files.values()) if options.cold else []
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for reader in readers.values():  # the first batch fills the buffer
            next(reader)
        for _ in range(options.rounds):
            for name, reader in readers.items():
                rates[name].append(measure(reader, options.seconds, cold))
    cache = ", page cache cold" if options.cold else ""
    table = Table(
        title=f"Tiles/s on one core{cache}, {options.n_slides} slides, {options.rounds} rounds"
    )
    for column in ("reader", "median", "min to max", "of plain", "of decoding", "of eva"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    for name, values in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(values, rates[other], strict=True))
            if other in rates
            else None
            for other in ("plain", "decoding", "eva")
        ]
        table.add_row(
            name,
            f"{statistics.median(values):.0f}",
            f"{min(values):.0f} to {max(values):.0f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
