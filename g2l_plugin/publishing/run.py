"""From a run, or one of its checkpoints, to the published folder of its student."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import torch
import yaml

from g2l_plugin.distillation.checkpoint_io import LAST, list_checkpoints
from g2l_plugin.distillation.record import RunRecord
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.report import REPORT_FILE
from g2l_plugin.publishing.card import CardFacts, render_card
from g2l_plugin.publishing.export import RESULTS, TRAINING_CONFIG, write_folder
from g2l_plugin.publishing.hub import upload_student
from g2l_plugin.publishing.licenses import StudentLicense, license_of
from g2l_plugin.publishing.options import UploadOptions

_STUDENT = "student.model."


@dataclasses.dataclass(frozen=True)
class Published:
    """A published folder.

    Attributes:
        folder: The folder.
        record: What its run tells of itself.
        license: The student's licence.
    """

    folder: Path
    record: RunRecord
    license: StudentLicense


def find_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run: the last where it has ended.

    Args:
        run: A checkpoint, the folder of a run (`.../run_0`) or that of its session.

    Raises:
        UserError: There is none.
    """
    run = run.expanduser()
    if run.is_file():
        return run
    for folder in (run, *sorted(run.glob("run_*"))):
        if checkpoints := list_checkpoints(folder):
            return checkpoints[0]
    raise UserError(
        f"There is no {run / 'checkpoints' / LAST}. Expected the folder of a run (.../run_0), or a "
        "checkpoint."
    )


def publish_run(
    run: Path, folder: Path | None = None, *, cancer: str | None = None, license: str | None = None
) -> Published:
    """Publishes the student of a run, or of one checkpoint, by what its files say.

    Args:
        run: See `find_checkpoint`. A run has to be at its end, a checkpoint need not.
        folder: The folder to write; None takes `student` in the run's folder.
        cancer: The cancer that its slides were of, for the card; None takes its config's.
        license: Licence identifier; None takes what follows from teacher and start.

    Raises:
        UserError: The run has not ended, or there is nothing to publish.
    """
    path = find_checkpoint(run)
    checkpoint = _read_checkpoint(path)
    record = RunRecord.from_checkpoint(checkpoint, str(path))
    if not record.finished and not run.expanduser().is_file():
        raise UserError(
            f"{run} has not come to its end (step {record.step:,}). Resume it "
            f"(`resume: auto`, or RESUME={path}), or publish what there is: g2l publish {path}"
        )
    state = {
        name.removeprefix(_STUDENT): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_STUDENT)
    }
    run_folder = path.parent.parent
    config = _read_yaml(run_folder / TRAINING_CONFIG)
    evaluation = _read_json(run_folder / REPORT_FILE)
    settled = license_of(
        [
            *(("teacher", teacher.provenance) for teacher in record.teachers),
            ("start", record.student.provenance),
        ]
    )
    if license:
        settled = dataclasses.replace(settled, identifier=license)
    if cancer is None and config is not None:
        cancer = config["trainer"]["init_args"].get("cancer")
    facts = CardFacts(record, settled, cancer, config, evaluation)
    results = {"alignment": record.alignment, "evaluation": evaluation}
    files = {RESULTS: json.dumps(results, indent=2) + "\n"}
    if config is not None:
        files[TRAINING_CONFIG] = (run_folder / TRAINING_CONFIG).read_text(encoding="utf-8")
    written = write_folder(
        folder or run_folder / "student",
        state,
        record.network,
        card=render_card(facts),
        license=settled.identifier,
        metadata={
            "teacher": "; ".join(teacher.provenance.describe() for teacher in record.teachers),
            "start": record.student.provenance.describe(),
            "step": str(record.step),
        },
        files=files,
    )
    return Published(written, record, settled)


def upload_published(published: Published, options: UploadOptions, dry_run: bool = False) -> str:
    """Uploads a published folder.

    Args:
        published: The folder.
        options: Where to; its `repo_id` is given.
        dry_run: Whether only to show what would go.

    Returns:
        Where it is to be seen.

    Raises:
        UserError: Its weights are restricted and no licence is named, or the upload fails.
    """
    assert options.repo_id is not None
    if published.license.restrictions and options.license is None:
        raise UserError(
            f"Nothing is uploaded to {options.repo_id}: "
            f"{' '.join(published.license.restrictions)} Name the licence that you give it "
            "(--license, or `publish: {license: ...}`)."
        )
    settings = dataclasses.asdict(options)
    del settings["license"]
    return upload_student(published.folder, dry_run=dry_run, **settings)


def benchmark_command(published: Published, config: str) -> str:
    """The shell command that runs an eva config on a published folder.

    Args:
        published: The published folder.
        config: Path or URL of an eva config with a `ModelFromRegistry`.
    """
    cfg = published.record.network["pretrained_cfg"]
    settings = {
        "MODEL_NAME": "g2l/student",
        "G2L_STUDENT": f"local-dir:{published.folder}",
        "IN_FEATURES": published.record.student.embedding_dim,
        "RESIZE_DIM": cfg["input_size"][1],
        "NORMALIZE_MEAN": cfg["mean"],
        "NORMALIZE_STD": cfg["std"],
    }
    variables = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in settings.items())
    return f"{variables} eva predict_fit --config {shlex.quote(config)}"


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        # Only tensors and plain values are read: a checkpoint may come from elsewhere.
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch has many ways to say it
        raise UserError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}). Expected "
            "checkpoints/last.ckpt of a run; take another of its checkpoints."
        ) from error


def _read_yaml(file: Path) -> dict[str, Any] | None:
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
