"""From a finished run to its published folder, and the command that benchmarks it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.evaluation.report import REPORT_FILE
from g2l_plugin.publishing.card import StudentFacts, render_card
from g2l_plugin.publishing.export import (
    export_student,
    input_size,
    normalization,
    timm_config,
)

if TYPE_CHECKING:
    from g2l_plugin.distillation.module import DistillationModule
    from g2l_plugin.distillation.trainer import KDTrainer


def publish_run(trainer: KDTrainer, module: DistillationModule, folder: Path) -> Path:
    """Publishes the student of a fitted module.

    Args:
        trainer: The trainer that fitted it.
        module: The module.
        folder: The folder to write, in the run's folder.

    Returns:
        The folder.
    """
    facts = _facts(trainer, module, folder.parent / REPORT_FILE)
    return export_student(module.student, folder, card=render_card(facts), license=facts.license)


def benchmark_command(student: Encoder, folder: Path, config: str) -> str:
    """The shell command that runs an eva config on a published folder.

    Args:
        student: The student in the folder.
        folder: The published folder.
        config: Path or URL of an eva config with a `ModelFromRegistry`.
    """
    mean, std = normalization(student)
    settings = {
        "MODEL_NAME": "g2l/student",
        "G2L_STUDENT": f"local-dir:{folder}",
        "IN_FEATURES": student.embedding_dim,
        "RESIZE_DIM": input_size(student)[0],
        "NORMALIZE_MEAN": mean,
        "NORMALIZE_STD": std,
    }
    variables = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in settings.items())
    return f"{variables} eva predict_fit --config {shlex.quote(config)}"


def _facts(trainer: KDTrainer, module: DistillationModule, report: Path) -> StudentFacts:
    student, teacher = module.student, module.teacher
    licenses = {
        provenance.license
        for provenance in (student.provenance, teacher.provenance)
        if provenance.pretrained
    }
    mean, std = normalization(student)
    return StudentFacts(
        teacher=teacher.provenance,
        start=student.provenance,
        architecture=timm_config(student)["architecture"],
        parameters=student.count_parameters(),
        teacher_parameters=teacher.count_parameters(),
        embedding_dim=student.embedding_dim,
        input_size=input_size(student),
        mean=mean,
        std=std,
        loss=_describe_loss(module.loss),
        steps=trainer.global_step,
        tiles_seen=module.tiles_seen,
        n_slides=_count_slides(trainer),
        alignment=module.alignment,
        evaluation=_read_report(report),
        license=licenses.pop() if len(licenses) == 1 else None,
    )


def _describe_loss(loss: Any) -> str:
    settings = {k: v for k, v in vars(loss).items() if isinstance(v, int | float) and k[0] != "_"}
    settings.pop("training", None)
    inner = ", ".join(f"{name}={value:g}" for name, value in settings.items())
    return f"`{type(loss).__name__}({inner})`"


def _count_slides(trainer: KDTrainer) -> int | None:
    dataset = getattr(getattr(trainer, "datamodule", None), "datasets", None)
    return getattr(getattr(dataset, "train", None), "n_slides", None)


def _read_report(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
