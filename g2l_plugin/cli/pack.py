"""`g2l pack`: write the tiles of an index into shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
example:
  g2l pack data/index/g2l_breast /fast/breast_tiles
  PACKED_ROOT=/fast/breast_tiles eva fit --config configs/g2l_breast.yaml
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "pack",
        "Writes the tiles of an index into shards that stream (LitData, JPEG).",
        _EPILOG,
    )
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="folder of the index")
    add("output", type=Path, metavar="OUTPUT", help="folder for the shards; must not exist")
    add("--quality", type=int, default=95, help="quality of the JPEG files, 1 to 100")
    add("--n-val-tiles", type=int, default=2048, help="tiles for validation")
    add("--n-val-patients", type=int, default=20, help="patients held out for validation")
    add("--max-lost", type=float, default=0.01, help="share of tiles that may be unreadable")
    add("--workers", type=int, help="processes; one per usable CPU core if not given")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.slides.pack import pack_tiles

    pack_tiles(
        options.index,
        options.output,
        options.n_val_tiles,
        options.n_val_patients,
        options.quality,
        options.max_lost,
        options.workers,
    )
    print(f"Train on them: PACKED_ROOT={options.output} eva fit --config configs/g2l_breast.yaml")
