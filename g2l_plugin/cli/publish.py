"""`g2l publish`: a student as a folder with its card, and on the Hub."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from g2l_plugin.cli.command import Commands, add_command

if TYPE_CHECKING:
    from g2l_plugin.publishing.publish import Published

_EPILOG = """\
examples:
  g2l publish logs/g2l_breast/20261123-141422/run_0 --output breast_vitl14
  g2l publish logs/g2l_breast/20261123-141422/run_0/checkpoints/last.ckpt --output half_way
  g2l publish logs/g2l_breast/20261123-141422/run_0 --repo-id org/breast_vitl14 --onnx --dry-run

A student that other software distilled gets a folder and a card too:
  g2l publish local-dir:elsewhere --teacher h-optimus-0 --tiles data/tiles --output described
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "publish",
        "Writes the student of a run as a folder that plain timm loads, and uploads it to the Hub.",
        _EPILOG,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run that has ended, a checkpoint, or a model")
    add("--output", type=Path, help="folder to write; RUN/student if not given")
    add("--cancer", help="cancer of the slides, for the card; from the run's config if not given")
    add("--license", help="licence identifier; derived from teacher and start if not given")
    add("--onnx", action="store_true", help="also writes model.onnx, and uploads it")
    add("--force", action="store_true", help="publishes a student that is worse than its start too")
    add(
        "--patients",
        action="store_true",
        help="lists the training patients, hashed, even if they have no TCGA barcodes",
    )
    add = parser.add_argument_group("a model distilled elsewhere").add_argument
    add("--teacher", metavar="MODEL", help="its teacher; needs --output")
    add("--tiles", metavar="DIR", help="images, a manifest, tar or parquet to compare both on")
    add = parser.add_argument_group("upload to the Hub").add_argument
    add("--repo-id", metavar="ORG/NAME", help="repository; without it nothing is uploaded")
    add("--private", action="store_true", help="makes a new repository private")
    add("--revision", help="branch to commit to; main if not given")
    add("--tag", help="tag for the commit")
    add("--create-pr", action="store_true", help="opens a pull request instead of committing")
    add("--replace", action="store_true", help="replaces another model in the repository")
    add("--dry-run", action="store_true", help="shows what would be sent, and changes nothing")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.encoders.folder import ONNX
    from g2l_plugin.publishing.publish import upload_published
    from g2l_plugin.publishing.upload import UploadOptions

    published = _publish_elsewhere(options) if options.teacher else _publish_run(options)
    for restriction in published.license.restrictions:
        print(f"Licence: {restriction}", file=sys.stderr)
    print(f"Student: {published.folder}")
    if options.onnx:
        print(f"ONNX:    {published.folder / ONNX}")
    if options.repo_id is None:
        return
    names = [field.name for field in dataclasses.fields(UploadOptions)]
    upload = UploadOptions(**{name: getattr(options, name) for name in names})
    url = upload_published(published, upload, options.dry_run)
    print(f"{'Would be at' if options.dry_run else 'On the Hub'}: {url}")


def _publish_run(options: argparse.Namespace) -> Published:
    from g2l_plugin.errors import UserError
    from g2l_plugin.publishing.publish import publish_run

    if options.tiles:
        raise UserError("--tiles compares a model distilled elsewhere with its --teacher: name it.")
    return publish_run(
        Path(options.run),
        options.output,
        cancer=options.cancer,
        license=options.license,
        force=options.force,
        patients=options.patients,
        onnx=options.onnx,
    )


def _publish_elsewhere(options: argparse.Namespace) -> Published:
    from g2l_plugin.encoders.load import load_encoder
    from g2l_plugin.errors import UserError
    from g2l_plugin.evaluation.compare import compare_on_images
    from g2l_plugin.metrics.neighbours import choose_device
    from g2l_plugin.publishing.elsewhere import publish_elsewhere
    from g2l_plugin.runs.model_names import find_source
    from g2l_plugin.slides.image_set import find_images

    if options.output is None:
        raise UserError("A model distilled elsewhere needs a folder to write: --output DIR.")
    if options.patients or options.force:
        raise UserError("--patients and --force are for a run; leave them out with --teacher.")
    if (Path(options.run).expanduser() / "checkpoints").is_dir():
        raise UserError(f"{options.run} is a run: it knows its teacher. Leave out --teacher.")
    images = find_images(options.tiles) if options.tiles else None
    device = choose_device("auto")
    student, teacher = (
        load_encoder(find_source(model)).to(device) for model in (options.run, options.teacher)
    )
    return publish_elsewhere(
        student,
        teacher,
        options.output,
        compare=(lambda: compare_on_images(student, teacher, images)) if images else None,
        cancer=options.cancer,
        license=options.license,
        onnx=options.onnx,
    )
