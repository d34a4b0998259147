"""`g2l export`: a student in the form that another tool takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from g2l_plugin.cli.command import Commands, add_command

if TYPE_CHECKING:
    import torch

    from g2l_plugin.publishing.export.precision import ExampleTiles
    from g2l_plugin.publishing.export.torchscript import Fit

_EPILOG = """\
tools:
  lazyslide, trident, stamp, hest, thunder, slideflow, tiatoolbox, atlaspatch: a Python file
  timm, onnx, torchscript: a folder, a graph with its folder, a file that normalises its images
  wsinfer: the student with a linear probe, for WSInfer and QuPath

examples:
  g2l export breast_vitl14 --for lazyslide --output lazyslide
  g2l export org/breast_vitl14 --for trident --output trident
  g2l export breast_vitl14 --for wsinfer --output tumour --embeddings data/embeddings/bach \\
      --classes normal,tumour
  g2l export breast_vitl14 --for onnx --output int8 --precision int8 --tiles data/tiles
"""
_N_TILES = 64
"""Tiles that a lower precision is compared with float32 on."""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "export",
        "Writes what another tool takes of a student, and prints the lines that use it.",
        _EPILOG,
    )
    add = parser.add_argument
    add("student", metavar="STUDENT", help="folder, run, org/name on the Hub, or another source")
    add("--for", dest="tool", required=True, metavar="TOOL", help="the tool, see below")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--mpp", type=float, help="um per pixel of its tiles; from its training if not given")
    add = parser.add_argument_group("a lower precision").add_argument
    add(
        "--precision",
        default="float32",
        help="or float16, int8 (onnx), float16, bfloat16 (torchscript); what it costs is said",
    )
    add("--tiles", metavar="DIR", help="images to measure that on; the demo's tiles if not given")
    add = parser.add_argument_group("a linear probe, for wsinfer").add_argument
    add("--embeddings", type=Path, metavar="DIR", help="embeddings that eva wrote, with labels")
    add("--classes", metavar="A,B,...", help="names of the classes, from class 0")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.errors import UserError
    from g2l_plugin.publishing.export.export import export_for
    from g2l_plugin.runs.model_names import find_source

    if options.classes and options.embeddings is None:
        raise UserError("--classes names the classes of --embeddings DIR: give that too.")
    if options.tiles and options.precision == "float32":
        raise UserError("--tiles measures what a --precision below float32 costs: give that too.")
    export = export_for(
        find_source(options.student),
        options.tool,
        options.output,
        mpp=options.mpp,
        fit=_fit(options) if options.embeddings else None,
        precision=options.precision,
        tiles=_tiles(options.tiles),
    )
    for note in export.notes:
        print(f"Note: {note}", file=sys.stderr)
    if options.embeddings and not options.classes:
        print("Note: the classes are class_0, class_1, ...: --classes names them.", file=sys.stderr)
    print(f"{'Written' if export.written else 'Already there'}: {export.folder}")
    print(export.lines)


def _fit(options: argparse.Namespace) -> Fit:
    from g2l_plugin.evaluation.embedding_files import read_embeddings, read_model
    from g2l_plugin.publishing.export.torchscript import fit_classifier

    train = read_embeddings(options.embeddings, "train")
    classes = options.classes.split(",") if options.classes else None
    return lambda student, encoder: fit_classifier(
        student, encoder, train, read_model(options.embeddings), classes
    )


def _tiles(source: str | None) -> ExampleTiles:
    """The user's images, or tiles of a small generated cohort."""
    import torch

    from g2l_plugin.evaluation.invariance import fit_tile
    from g2l_plugin.publishing.export.precision import ExampleTiles
    from g2l_plugin.slides.image_set import find_images
    from g2l_plugin.slides.image_source import WholeImages, spread_evenly

    if source is None:
        return ExampleTiles(_demo_tiles, "the demo cohort")
    images = WholeImages(find_images(source))
    numbers = spread_evenly(len(images), _N_TILES)
    return ExampleTiles(
        lambda size: torch.stack([fit_tile(images[number], size) for number in numbers]),
        Path(source).resolve().name,
    )


def _demo_tiles(size: int) -> torch.Tensor:
    import tempfile

    import torch

    from g2l_plugin.demo.dataset import DemoTiles

    with tempfile.TemporaryDirectory() as folder:
        tiles = DemoTiles(folder, "train", size, max_tiles=_N_TILES, labelled=False, n_slides=2)
        tiles.prepare_data()
        tiles.setup()
        return torch.stack([tiles[number] for number in range(len(tiles))]) / 255
