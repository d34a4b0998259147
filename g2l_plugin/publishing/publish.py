"""Publishes the student of a run, or of one of its checkpoints, as a folder."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from loguru import logger

from g2l_plugin.encoders.folder import PATIENTS, README, RESULTS, TRAINING_CONFIG, write_folder
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.publishing.card import CardFacts, render_card
from g2l_plugin.publishing.licenses import StudentLicense, check_license, choose_license
from g2l_plugin.publishing.onnx_export import export_onnx
from g2l_plugin.publishing.paths import without_paths
from g2l_plugin.publishing.upload import UploadOptions, upload_student
from g2l_plugin.runs.checkpoints import (
    FOLDER,
    LAST,
    list_checkpoints,
    read_checkpoint,
    student_checkpoint,
    student_weights,
)
from g2l_plugin.runs.outcome import find_contradiction, find_decline
from g2l_plugin.runs.record import KEY, RunRecord
from g2l_plugin.runs.run_folder import CONFIG, EVALUATION, STUDENT
from g2l_plugin.slides.patients import UNKNOWN


@dataclasses.dataclass(frozen=True)
class Published:
    """A published folder.

    Attributes:
        folder: The folder.
        record: Facts about its run.
        license: The student's licence.
    """

    folder: Path
    record: RunRecord
    license: StudentLicense


def find_checkpoint(run: Path) -> Path:
    """Finds the newest checkpoint of a run; for a finished run, `last.ckpt`.

    Args:
        run: A checkpoint, the folder of a run (`.../run_0`) or that of its session.

    Raises:
        UserError: There is no checkpoint.
    """
    run = run.expanduser()
    if run.is_file():
        return run
    for folder in (run, *sorted(run.glob("run_*"))):
        if checkpoints := list_checkpoints(folder):
            return checkpoints[0]
    if (run / WEIGHTS).is_file():
        raise UserError(
            f"{run} is the folder of a model, and not of a run. Upload it with: hf upload ORG/NAME "
            f"{run}; or, if it was distilled elsewhere, name its teacher (--teacher MODEL), and it "
            "gets a card."
        )
    raise UserError(
        f"There is no {run / FOLDER / LAST}. Expected the folder of a run (.../run_0), or a "
        "checkpoint; or, with --teacher MODEL, a model distilled elsewhere."
    )


def publish_run(
    run: Path,
    folder: Path | None = None,
    *,
    cancer: str | None = None,
    license: str | None = None,
    force: bool = False,
    patients: bool = False,
    onnx: bool = False,
) -> Published:
    """Publishes the student of a run, or of one checkpoint, from the files in the run's folder.

    Args:
        run: See `find_checkpoint`. A run must have ended; a single checkpoint may be of any step.
        folder: The folder to write; None means `student` in the run's folder.
        cancer: The cancer of the slides, for the card; None reads it from the run's config.
        license: Licence identifier; None derives it from teacher and start.
        force: Whether to publish a student that is worse than its start; the card says so.
        patients: Whether to list the training patients in patients.txt even if some have no TCGA
            barcode. They are hashed, but whoever knows how a hospital names patients can guess
            them. With TCGA barcodes, which are public, they are listed anyway.
        onnx: Whether to write model.onnx too, which needs the extra `onnx`.

    Raises:
        UserError: The run has not ended, its checkpoint has no student that can be published, or
            the student is worse than its start, or the Hub knows no such licence.

    Examples:
        >>> from g2l_plugin import AugmentedView, DemoTiles, EncoderSource, distil, publish_run
        >>> tiles = DemoTiles("demo", slides="train", labelled=False, n_slides=4)
        >>> student = distil(
        ...     "demo:teacher",
        ...     EncoderSource("demo:teacher", pretrained=False),
        ...     tiles,
        ...     output="logs",
        ...     view=AugmentedView(56),
        ...     max_steps=3,
        ...     num_workers=0,
        ... )
        >>> again = publish_run(student.parent, Path("again"), cancer="breast", license="mit")
        >>> sorted(file.name for file in again.folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors', 'results.json']
    """
    if license:
        check_license(license)
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    record = RunRecord.from_checkpoint(checkpoint, str(path))
    if not record.finished and not run.expanduser().is_file():
        raise UserError(
            f"{run} has not ended (step {record.step:,}). Resume it (`resume: auto`, or "
            f"RESUME={path}), or publish this checkpoint: g2l publish {path}"
        )
    if not record.step:
        raise UserError(f"{path} has made no step: its student is the start. Train it first.")
    run_folder = path.parent.parent
    if not run.expanduser().is_file() and (chosen := student_checkpoint(run_folder)) != path:
        checkpoint = read_checkpoint(chosen)
        record = RunRecord.from_checkpoint(checkpoint, str(chosen))
    decline = find_decline(record.start, record.alignment, record.change)
    if decline is not None and not force:
        raise UserError(
            f"The student is further from its teacher than its start, so it is not published: "
            f"{decline}. Train it again, e.g. with configs/g2l_robust.yaml, or publish it anyway: "
            f"g2l publish --force {run}"
        )
    if contradiction := find_contradiction(record.start, record.alignment, record.change):
        logger.warning(
            f"The student is further from its teacher in one way and nearer in another: "
            f"{contradiction}. Compare it with its start on a task before you use it."
        )
    # Whoever gets the folder learns nothing of this machine's folders.
    record = RunRecord.from_checkpoint({KEY: without_paths(record.to_dict())}, str(path))
    config = without_paths(_read_yaml(run_folder / CONFIG))
    evaluation = without_paths(_read_json(run_folder / EVALUATION))
    student_license = choose_license(
        [
            *(("teacher", teacher.provenance) for teacher in record.teachers),
            ("start", record.student.provenance),
        ],
        license,
    )
    if cancer is None and config is not None:
        cancer = find_cancer(config)
    listed = _patients_to_list(record.cohort, patients)
    facts = CardFacts(record, student_license, cancer, config, evaluation)
    results = {
        "start": record.start,
        "alignment": record.alignment,
        "change": record.change,
        "evaluation": evaluation,
    }
    return write_published(
        folder or run_folder / STUDENT,
        student_weights(checkpoint),
        facts,
        metadata={"start": record.student.provenance.describe(), "step": str(record.step)},
        results=results,
        patients=listed,
        onnx=onnx,
    )


def write_published(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    facts: CardFacts,
    *,
    metadata: dict[str, str],
    results: dict[str, Any],
    patients: Sequence[str],
    onnx: bool,
) -> Published:
    """Writes a folder with weights, card, results, and whatever else is known.

    Args:
        folder: The folder to write.
        state: The student's state dict.
        facts: What the card says; whether there are patients.txt and model.onnx follows from here.
        metadata: Notes on the weights beside the teachers, for config.json.
        results: The content of results.json.
        patients: Hashed patients to list; empty lists none.
        onnx: Whether to write model.onnx too.
    """
    record = facts.record
    facts = dataclasses.replace(facts, lists_patients=bool(patients))
    files = {RESULTS: json.dumps(results, indent=2) + "\n"}
    if patients:
        files[PATIENTS] = "".join(f"{entry}\n" for entry in patients)
    if facts.config is not None:
        files[TRAINING_CONFIG] = yaml.dump(facts.config, sort_keys=False)
    teachers = "; ".join(teacher.provenance.describe() for teacher in record.teachers)
    written = write_folder(
        folder,
        state,
        record.network,
        card=render_card(facts),
        license=facts.license.identifier,
        metadata={"teacher": teachers} | metadata,
        files=files,
    )
    if onnx:
        export_onnx(written)
        # Only now, so that no card names a graph that could not be written.
        write_text(written / README, render_card(dataclasses.replace(facts, has_onnx=True)))
    return Published(written, record, facts.license)


def upload_published(published: Published, options: UploadOptions, dry_run: bool = False) -> str:
    """Uploads a published folder; see `upload_student`.

    Restricted weights are uploaded only under a licence that the user names.

    Args:
        published: The folder.
        options: Where and how; needs a `repo_id`.
        dry_run: Whether only to print what would be sent.

    Returns:
        URL of the upload.

    Raises:
        UserError: The weights are restricted and no licence is named, or the upload fails.
    """
    if published.license.restrictions and options.license is None:
        raise UserError(
            f"Nothing is uploaded to {options.repo_id}: "
            f"{' '.join(published.license.restrictions)} Name the licence that you give it "
            "(--license, or `license` of PublishStudent)."
        )
    return upload_student(published.folder, options, dry_run)


def find_cancer(config: dict[str, Any]) -> str | None:
    """Reads the cancer of a run's slides from its config's `PublishStudent`, if it names one."""
    for callback in config["trainer"]["init_args"].get("callbacks") or []:
        if str(callback["class_path"]).endswith("PublishStudent"):
            return callback.get("init_args", {}).get("cancer")
    return None


def benchmark_command(published: Published, config: str) -> str:
    """Builds the shell command that runs an eva config on a published folder.

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


def _patients_to_list(cohort: dict[str, Any], wanted: bool) -> list[str]:
    """The hashed patients that may be published; empty if there are none."""
    patients = cohort.get("patients") or []
    if not set(patients) - {UNKNOWN}:
        if wanted:
            logger.warning("The patients of the cohort are not known, so none are listed.")
        return []
    return patients if wanted or cohort["patients_public"] else []


def _read_yaml(file: Path) -> dict[str, Any] | None:
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
