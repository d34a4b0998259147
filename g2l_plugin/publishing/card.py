"""The model card of a student, rendered from the record and the results of its run."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import math
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from g2l_plugin.publishing.export.export import TOOLS
from g2l_plugin.publishing.licenses import StudentLicense
from g2l_plugin.runs.outcome import find_contradiction, find_decline
from g2l_plugin.runs.record import RunRecord
from g2l_plugin.slides.patients import UNKNOWN

_FILES = importlib.resources.files("g2l_plugin.publishing")
_RECIPE = ("trainer", "model", "data")
# Settings of the machine, of progress and logging, and those that the card lists elsewhere.
_NO_HYPERPARAMETERS = re.compile(
    r"root|dir|path|cache|logger|Logger|ProgressBar|Checkpoint|Evaluation|PublishStudent"
    r"|teacher$|student$"
    r"|n_runs|sanity|summary|every_n|val_check|resume|workers|^val$"
)


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts that a card is rendered from.

    Attributes:
        record: Facts about the run.
        license: The student's licence.
        cancer: The cancer of its slides, e.g. `breast`; None if unknown.
        config: The resolved training config; None if the run has none.
        evaluation: The content of the run's evaluation.json; None if the run has none.
        lists_patients: Whether the folder has a patients.txt.
        has_onnx: Whether it has a model.onnx.
        elsewhere: Whether the student was trained by other software: what is not in the record is
            unknown then, and its teacher is the publisher's word.
    """

    record: RunRecord
    license: StudentLicense
    cancer: str | None = None
    config: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    lists_patients: bool = False
    has_onnx: bool = False
    elsewhere: bool = False


def render_card(facts: CardFacts) -> str:
    """Renders README.md of a published folder: the Hub's metadata, then the text.

    It contains `OWNER/NAME` in place of the model's name on the Hub.
    """
    record = facts.record
    published = _published(facts.cancer)
    return str(
        ModelCard.from_template(
            _metadata(facts),
            template_str=(_FILES / "card.md.jinja").read_text(encoding="utf-8"),
            **{field.name: getattr(record, field.name) for field in dataclasses.fields(record)},
            cancer=facts.cancer,
            has_onnx=facts.has_onnx,
            elsewhere=facts.elsewhere,
            tools=TOOLS,
            license=facts.license.identifier,
            restrictions=facts.license.restrictions,
            evaluation=facts.evaluation,
            patients=_patients(record.cohort.get("patients"), facts.lists_patients),
            alignment_rows=_alignment_rows(record),
            decline=find_decline(record.start, record.alignment, record.change),
            contradiction=find_contradiction(record.start, record.alignment, record.change),
            undefined=_undefined(facts.evaluation),
            robustness_measured=_robustness_measured(facts.evaluation),
            cell=_cell,
            hyperparameters=_hyperparameters(facts.config or {}),
            hours=record.seconds / 3600 if record.step else None,
            published=published,
            published_models=list(dict.fromkeys(m for row in published for m in row["by_model"])),
            size=record.network["pretrained_cfg"]["input_size"][1],
            millions=lambda value: f"{value / 1e6:,.2f}",
            giga=lambda value: f"{value / 1e9:,.1f}" if value >= 1e10 else f"{value / 1e9:.3g}",
            percent=lambda value: f"{value:.1%}",
        )
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    start = facts.record.student.provenance
    teachers = [teacher.provenance.source for teacher in facts.record.teachers]
    from_hub = start.pretrained and start.source.startswith("hf-hub:")
    tiles = "tiles" if facts.elsewhere else "held-out tiles of the training cohort"
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type="tiles" if facts.elsewhere else "held-out-tiles",
            dataset_name=tiles,
            metric_type=name.removeprefix("val/"),
            metric_value=round(facts.record.alignment[name], 6),
            metric_name=label,
        )
        for name, label in (
            ("val/cka", "unbiased linear CKA with the teacher"),
            ("val/shared_neighbours", "10 nearest tiles shared with the teacher"),
            ("val/cosine", "cosine with the teacher, projected"),
        )
        if math.isfinite(facts.record.alignment.get(name, math.nan))
    ]
    if facts.evaluation and (after := facts.evaluation["encoders"].get("student after")):
        results += [
            EvalResult(
                task_type="image-classification",
                dataset_type="held-out-slides",
                dataset_name=facts.evaluation["task"],
                metric_type=name,
                metric_value=round(after["values"][name], 6),
                metric_name=title,
            )
            for name, title in facts.evaluation["columns"].items()
            if name in after["values"]
        ]
    made_by = [] if facts.elsewhere else ["g2l"]
    tags = ["pathology", "histology", "knowledge-distillation", *made_by, "timm", "transformers"]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        license=facts.license.identifier,
        base_model=start.source.removeprefix("hf-hub:") if from_hub else None,
        tags=[
            *tags,
            *(["onnx"] if facts.has_onnx else []),
            *([facts.cancer] if facts.cancer else []),
        ],
        model_name="OWNER/NAME" if results else None,
        eval_results=results or None,
        teacher=teachers[0] if len(teachers) == 1 else teachers,
    )


def _patients(patients: list[str] | None, listed: bool) -> str:
    """Says whether it is known which patients were trained on."""
    n_known = sum(entry != UNKNOWN for entry in patients or ())
    if not n_known:
        return "The patients are not known."
    if not listed:
        return "The patients are not listed."
    others = " Others are not known." if UNKNOWN in (patients or ()) else ""
    return (
        f"`patients.txt` lists {n_known:,} patient{'s' * (n_known > 1)}, each as the first 16 "
        "digits of the SHA-256 of the name or TCGA barcode, so that a benchmark can leave them "
        f"out.{others}"
    )


def _alignment_rows(record: RunRecord) -> list[list[str]]:
    """The figures of the validation at start and end: name, start, end, interval."""
    start, end = record.start, record.alignment
    rows = []
    for number in range(1, len(record.teachers) + 1):
        suffix = f"/teacher_{number}" if number > 1 else ""
        of_teacher = f" of teacher {number}" if number > 1 else ""
        for name, title in (
            ("cka", "unbiased linear CKA with the embeddings"),
            ("shared_neighbours", "10 nearest tiles shared with those"),
            ("cosine", "cosine of the projected embeddings with those"),
        ):
            low, high = (end.get(f"val/{name}_{side}{suffix}") for side in ("low", "high"))
            interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            rows.append(
                [title + (of_teacher or " of the teacher"), f"val/{name}{suffix}", interval]
            )
    rows.append(["effective rank of the embeddings", "val/effective_rank", ""])
    return [
        [title, *(_number(part.get(name)) for part in (start, end)), interval]
        for title, name, interval in rows
        if name in end
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _cell(row: dict[str, Any], column: str) -> str:
    """Formats a value of an encoder with its interval."""
    if column not in row["values"]:
        return "undefined" if column in row["undefined"] else ""
    text = f"{row['values'][column]:.4f}"
    if interval := row["intervals"].get(column):
        text += f" ({interval['low']:.4f} to {interval['high']:.4f})"
    return text


def _undefined(evaluation: dict[str, Any] | None) -> list[str]:
    rows = (evaluation or {"encoders": {}})["encoders"].values()
    return list(dict.fromkeys(reason for row in rows for reason in row["undefined"].values()))


def _robustness_measured(evaluation: dict[str, Any] | None) -> bool:
    return any("Index" in column for column in (evaluation or {"columns": ()})["columns"])


def _hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """Lists the recipe's settings by dotted name, without `init_args` and `class_path`."""
    found: dict[str, Any] = {}

    def walk(value: Any, names: tuple[str, ...]) -> None:
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for item in value:
                if isinstance(item, dict) and "class_path" in item:
                    walk({_class_name(item): item.get("init_args", {})}, names)
        elif isinstance(value, dict):
            if "class_path" in value and len(names) > 1:
                found[".".join(names)] = _class_name(value)
            for name, inner in value.items():
                if name == "init_args":
                    walk(inner, names)
                elif name != "class_path" and not _NO_HYPERPARAMETERS.search(name):
                    walk(inner, (*names, name))
        elif value is not None:
            found[".".join(names)] = value

    for name in _RECIPE:
        walk(config.get(name), (name,))
    return found


def _class_name(value: dict[str, Any]) -> str:
    return str(value["class_path"]).rpartition(".")[2]


def _published(cancer: str | None) -> list[dict[str, Any]]:
    """Reads the published values of a cancer's tasks: one row per task and metric."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    text = (_FILES / "published.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        if row["cancer"] == cancer:
            key = (row["task"], row["metric"])
            entry = rows.setdefault(
                key,
                {
                    "task": row["task"],
                    "metric": row["metric"],
                    "source": row["source"],
                    "by_model": {},
                },
            )
            entry["by_model"][row["model"]] = row["value"]
    return list(rows.values())
