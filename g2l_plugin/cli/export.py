"""`g2l export`: a student in the form that another tool takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from g2l_plugin.cli.command import Commands, add_command

if TYPE_CHECKING:
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
"""


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
    export = export_for(
        find_source(options.student),
        options.tool,
        options.output,
        mpp=options.mpp,
        fit=_fit(options) if options.embeddings else None,
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
