"""`g2l embed`: whole slides to one file of embeddings a slide."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command, shard

_EPILOG = """\
examples:
  g2l embed logs/g2l_breast/run_0 /data/TCGA-BRCA --output features/student
  g2l embed h-optimus-0 data/index/g2l_breast --output features/teacher --precision bf16-mixed
  g2l embed org/breast_vitl14 slide.svs --output features
  CUDA_VISIBLE_DEVICES=1 g2l embed MODEL /data/slides --output features --shard 2/4

A stopped command continues when it is run again. For several GPUs or machines, start one command
with `--shard i/n` for each; then the same without --shard writes the table of all slides. Or give
the address of a Dask scheduler, with a worker for each GPU.

OUTPUT/<slide id>.h5 has `features` and `coords`. TRIDENT reads it as it is. For CLAM, give
`--output features/h5_files` and call `load_from_h5(True)`. For STAMP, give `--layout stamp`.
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "embed",
        "Embeds whole slides for slide-level models: one HDF5 file a slide.",
        _EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, a run, a name of `g2l models`, or a Hub id")
    add("slides", type=Path, metavar="SLIDES", help="a folder, a slide, a list, or an index")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    add("--root", type=Path, metavar="DIR", help="folder of a list's slides; the list's, if none")
    add("--max-lost", type=float, default=0.01, help="share that may be unreadable, 0 to 1")
    add = parser.add_argument_group("which tiles (an index has its own)").add_argument
    add("--tile-size", type=int, metavar="PX", help="side of a tile, in pixels; 224 if not given")
    add("--target-mpp", type=float, help="microns per pixel of the tiles; 0.5 if not given")
    add("--overwrite-mpp", type=float, help="microns per pixel of slides whose metadata has none")
    add("--min-tissue", type=float, help="least share of tissue in a tile; 0.5 if not given")
    add("--min-sharpness", type=float, help="least sharpness, 0 keeps all; 0.1 if not given")
    add("--reader", choices=("auto", "openslide"), help="as in g2l index; auto if not given")
    add = parser.add_argument_group("how").add_argument
    add("--layout", choices=("trident", "stamp"), default="trident", help="whose files to write")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the embeddings")
    add(
        "--tokens",
        choices=("class_token", "class_and_mean_patch"),
        default="class_token",
        help="what an embedding is made of",
    )
    add(
        "--precision",
        choices=("32-true", "bf16-mixed"),
        default="32-true",
        help="what the model computes in",
    )
    add("--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help="one device")
    add("--batch-size", type=int, default=64, help="tiles per batch")
    add("--workers", type=int, help="processes that read; one per usable core if not given")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--shard", type=shard, metavar="I/N", help="embed only the I-th of N parts, I from 1")
    where("--scheduler", metavar="ADDRESS", help="Dask scheduler, as tcp://host:8786")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.embedding.embed_slides import embed_slides
    from g2l_plugin.encoders.load import EncoderSource
    from g2l_plugin.runs.model_names import find_source

    rows = embed_slides(
        EncoderSource(find_source(options.model), output=options.tokens),
        options.slides,
        options.output,
        root=options.root,
        tile_size=options.tile_size,
        target_mpp=options.target_mpp,
        overwrite_mpp=options.overwrite_mpp,
        min_tissue=options.min_tissue,
        min_sharpness=options.min_sharpness,
        reader=options.reader,
        layout=options.layout,
        dtype=options.dtype,
        precision=options.precision,
        accelerator=options.accelerator,
        batch_size=options.batch_size,
        workers=options.workers,
        shard=options.shard,
        scheduler=options.scheduler,
        max_lost=options.max_lost,
    )
    embedded = [row for row in rows if row.status == "embedded"]
    tiles, lost = sum(row.tiles for row in embedded), sum(row.lost_tiles for row in rows)
    print(
        f"{len(embedded):,} of {len(rows):,} slides, {tiles:,} tiles ({lost:,} lost): "
        f"{options.output}"
    )
