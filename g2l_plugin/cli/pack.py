"""`g2l pack`: write the tiles of an index, or of other images, into shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command, add_workers
from g2l_plugin.errors import UserError

_EPILOG = """\
examples:
  g2l pack data/index/g2l_breast /fast/breast_tiles
  PACKED_ROOT=/fast/breast_tiles eva fit --config configs/g2l_breast.yaml
  g2l pack tiles.csv /fast/lung_tiles --mpp 0.5 --tile-size 224
  CANCER=lung PACKED_ROOT=/fast/lung_tiles TILE_SIZE=224 eva fit --config configs/g2l.yaml
"""

_OF_IMAGES = ("mpp", "tile_size", "target_mpp", "patient_pattern", "seed")
"""Options that an index has settled."""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "pack",
        "Writes tiles into shards that stream (LitData, JPEG): those of an index, or images that "
        "are no slides.",
        _EPILOG,
    )
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of an index; or images: a folder, a manifest (CSV or parquet with a column "
        "path, and patient, centre and mpp if known), a tar file (webdataset), or a parquet file "
        "with a column image (datasets of the Hub)",
    )
    add("output", type=Path, metavar="OUTPUT", help="folder for the shards; must not exist")
    add("--quality", type=int, default=95, help="quality of the JPEG files, 1 to 100")
    add("--n-val-tiles", type=int, default=2048, help="tiles for validation")
    add("--n-val-patients", type=int, default=20, help="patients held out for validation")
    add("--max-lost", type=float, default=0.01, help="share of tiles that may be unreadable")
    add_workers(parser)
    images = parser.add_argument_group("images that are no slides")
    add = images.add_argument
    add("--mpp", type=float, help="microns per pixel of images for which a manifest says none")
    add("--tile-size", type=int, help="width and height of the tiles in pixels; 256 if not given")
    add("--target-mpp", type=float, help="microns per pixel of the tiles; 0.5 if not given")
    add(
        "--patient-pattern",
        metavar="REGEX",
        help="finds the patient in an image's name: its first group, or all of it",
    )
    add("--seed", type=int, help="seed of the choice of validation tiles; 0 if not given")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.slides.pack import pack_images, pack_tiles

    of_images = {
        name: value for name in _OF_IMAGES if (value := getattr(options, name)) is not None
    }
    shared = {
        name: getattr(options, name)
        for name in (
            "n_val_tiles",
            "n_val_patients",
            "quality",
            "max_lost",
            "workers",
            "scheduler",
        )
    }
    if (options.source.expanduser() / "index.json").is_file():
        if of_images:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in of_images)
            raise UserError(
                f"{options.source} is an index, which has its settings already: leave out {names}, "
                "or make another index."
            )
        pack_tiles(options.source, options.output, **shared)
        variables = ""
    else:
        pack_images(options.source, options.output, **of_images, **shared)
        variables = "".join(
            f" {variable}={of_images[name]}"
            for name, variable in (
                ("tile_size", "TILE_SIZE"),
                ("target_mpp", "TARGET_MPP"),
                ("seed", "COHORT_SEED"),
            )
            if name in of_images
        )
    variables += "".join(
        f" {variable}={value}"
        for variable, value, default in (
            ("N_VAL_TILES", options.n_val_tiles, 2048),
            ("N_VAL_PATIENTS", options.n_val_patients, 20),
        )
        if value != default
    )
    print(
        f"Train on them: CANCER=... PACKED_ROOT={options.output}{variables} "
        "eva fit --config configs/g2l.yaml"
    )
