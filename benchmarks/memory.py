"""Measures the memory of a process that reads tiles, with 48 slides and with 1,000.

The cohorts are hard links to the given slides. A new process with data workers reads each of them
for --seconds. The table shows the peak memory of the process and its workers together, with shared
pages counted once (PSS; Linux).

Run: python benchmarks/memory.py --slides DIR
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from cohorts import add_arguments, copy_slides
from rich.console import Console
from rich.table import Table

from g2l_plugin import TileDataset, TileLoader


def pss_of_all() -> float:
    """Memory of this process and its children in MB."""
    total = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure(folder: Path, slides: Path, options: argparse.Namespace, results) -> None:
    dataset = TileDataset(
        str(slides),
        overwrite_mpp=options.overwrite_mpp,
        one_per_patient=False,
        keep_duplicates=True,
        index_dir=str(folder / f"{slides.name}_index"),
    )
    dataset.prepare_data()
    dataset.setup()
    loader = TileLoader(
        dataset, buffer_tiles=options.buffer_tiles, num_workers=options.workers, prefetch_factor=2
    )
    before = pss_of_all()
    peak, n_tiles, last, start = before, 0, 0.0, time.monotonic()
    while time.monotonic() - start < options.seconds:
        for batch in loader:
            n_tiles += len(batch.tiles)
            now = time.monotonic()
            if now - last > 1:
                peak, last = max(peak, pss_of_all()), now
            if now - start > options.seconds:
                break
    results.put((len(dataset.tiles.paths), len(dataset), n_tiles, before, peak))


def main() -> None:
    if not sys.platform.startswith("linux"):
        sys.exit("This benchmark reads /proc, which only Linux has.")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, n_slides=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--buffer-tiles", type=int, default=1024, help="small enough for both cohorts to fill it"
    )
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    table = Table(title=f"Memory of a process and its {options.workers} data workers")
    for column in ("slides", "tiles", "tiles read", "MB before", "peak MB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        context = multiprocessing.get_context("spawn")
        for n_slides in (48, options.n_slides):
            slides = copy_slides(options.slides, Path(name) / f"{n_slides}", n_slides, link=True)
            results = context.Queue()
            process = context.Process(target=measure, args=(Path(name), slides, options, results))
            process.start()
            n_used, n_tiles, n_read, before, peak = results.get()
            process.join()
            table.add_row(
                f"{n_used:,}", f"{n_tiles:,}", f"{n_read:,}", f"{before:,.0f}", f"{peak:,.0f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
