"""`g2l index`: choose the slides of a cohort and find their tiles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from g2l_plugin.cli.command import Commands, add_command, add_workers, shard

if TYPE_CHECKING:
    from g2l_plugin.slides.index import Index

_EPILOG = """\
examples:
  g2l index /data/TCGA-BRCA data/index/g2l_breast
  g2l index /data/TCGA-BRCA data/index/g2l_breast --slides gdc_manifest.txt --n-slides 500
  SLIDES_ROOT=/data/TCGA-BRCA eva fit --config configs/g2l_breast.yaml     # trains on the first

A stopped command continues when it is run again. Open INDEX/index.html to look at the slides. On a
cluster, use `--scheduler` with Dask, or `--shard $SLURM_ARRAY_TASK_ID/16` in a job array of 1-16,
then `--merge` once.
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "index",
        "Chooses the slides of a cohort and finds the tiles on their tissue.",
        _EPILOG,
    )
    add = parser.add_argument
    add("root", type=Path, help="folder of the slides, searched with its subfolders")
    add("index", type=Path, metavar="INDEX", help="folder for the index")
    add = parser.add_argument_group("which slides").add_argument
    add("--slides", metavar="FILE", help="list of slides: one path per line, CSV, or GDC manifest")
    add("--n-slides", type=_number, default=1000, metavar="N", help="slides to choose; or `all`")
    add("--seed", type=int, default=0, help="seed of the choice")
    add("--all-of-a-patient", action="store_true", help="use more than one slide per patient")
    add("--keep-duplicates", action="store_true", help="use slides of the same content twice")
    add("--max-lost", type=float, default=0.01, help="share of slides that may be unusable, 0 to 1")
    add = parser.add_argument_group("which tiles").add_argument
    add("--width", type=int, default=256, help="width of a tile, in pixels")
    add("--height", type=int, default=256, help="height of a tile, in pixels")
    add("--target-mpp", type=float, default=0.5, help="microns per pixel of the tiles")
    add("--overwrite-mpp", type=float, help="microns per pixel of slides whose metadata has none")
    add("--min-tissue", type=float, default=0.5, help="least share of tissue in a tile, 0 to 1")
    add("--min-sharpness", type=float, default=0.1, help="least sharpness; 0 keeps blurred tiles")
    how = parser.add_argument_group("how")
    add = how.add_argument
    add(
        "--reader",
        choices=("auto", "openslide"),
        default="auto",
        help="auto decodes a slide's own tiles where that gives the same pixels; openslide never",
    )
    add_workers(how)
    add(
        "--slide-timeout",
        type=float,
        default=30,
        metavar="MINUTES",
        help="minutes that a slide may take",
    )
    add("--shard", type=shard, metavar="I/N", help="index only the I-th of N parts, I from 1")
    add("--merge", action="store_true", help="only check that all parts are there, and sum up")
    parser.set_defaults(command=_run)


def _number(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected 1 or more, or `all`, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.slides.index import summarize_index
    from g2l_plugin.slides.indexing import build_index
    from g2l_plugin.slides.tile_grid import TileGrid

    grid = TileGrid(
        options.width,
        options.height,
        options.target_mpp,
        options.overwrite_mpp,
        options.min_tissue,
        options.min_sharpness,
        options.reader,
    )
    index: Index | None
    if options.merge:
        index = summarize_index(options.index, grid, options.root, options.keep_duplicates)
    else:
        index = build_index(
            options.index,
            grid,
            options.root,
            options.slides,
            options.n_slides,
            options.seed,
            not options.all_of_a_patient,
            options.keep_duplicates,
            options.max_lost,
            options.workers,
            options.shard,
            options.slide_timeout,
            options.scheduler,
        )
    if index is None:
        part, n_parts = options.shard
        print(f"Part {part} of {n_parts} is indexed. When all are: g2l index … --merge")
        return
    _print(index)
    index.check_losses(options.max_lost)


def _print(index: Index) -> None:
    from rich.console import Console
    from rich.table import Table

    from g2l_plugin.files import printable

    console = Console(soft_wrap=True)
    slides = Table("slides", "", title="Slides by status")
    for status, count in index.counts().most_common():
        slides.add_row(status, f"{count:,}", style="" if status == "used" else "yellow")
    console.print(slides)
    tiles = Table("tiles", "", title="Tiles by status")
    for name in ("tiles", "little_tissue", "ink", "blurred", "damaged"):
        total = sum(getattr(record, name) for record in index.records)
        tiles.add_row("kept" if name == "tiles" else name.replace("_", " "), f"{total:,}")
    console.print(tiles)
    for record in [record for record in index.records if record.problem][:10]:
        message = printable(record.message)
        console.print(f"{record.problem}: {message}", style="yellow", markup=False)
    print(f"Summary: {index.folder / 'slides.csv'}")
    print(f"Look at: {index.folder / 'index.html'}")
