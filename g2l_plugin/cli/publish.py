"""`g2l publish`: the student of a run as a folder, and on the Hub."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l publish logs/g2l_breast/20261123-141422/run_0 --output breast_vitl14
  g2l publish logs/g2l_breast/20261123-141422/run_0/checkpoints/last.ckpt --output half_way
  g2l publish logs/g2l_breast/20261123-141422/run_0 --repo-id org/breast_vitl14 --onnx --dry-run
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
    add("run", type=Path, metavar="RUN", help="folder of a run that has ended, or a checkpoint")
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
    from g2l_plugin.publishing.publish import publish_run, upload_published
    from g2l_plugin.publishing.upload import UploadOptions

    published = publish_run(
        options.run,
        options.output,
        cancer=options.cancer,
        license=options.license,
        force=options.force,
        patients=options.patients,
        onnx=options.onnx,
    )
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
