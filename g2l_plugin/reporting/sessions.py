"""Finding and reading what eva's sessions have left: results.json, and our measures beside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.reporting.config import CONFIG, SessionConfig, read_config
from g2l_plugin.reporting.names import task_key, task_title

RESULTS = "results.json"
"""Name of the file in which eva keeps the metrics of a session."""

SPLITS = ("test", "val")
"""Splits that are evaluated, the preferred one first."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What our measures found on one split.

    Attributes:
        values: Figures by name.
        undefined: Figures that cannot be told, with the reason.
        intervals: Low and high of the figures that have an interval.
        predictions: The table of the tiles; None where there is none.
    """

    values: dict[str, float]
    undefined: dict[str, str]
    intervals: dict[str, tuple[float, float]]
    predictions: Path | None


@dataclasses.dataclass(frozen=True)
class Session:
    """One session of eva: a model on a task.

    Attributes:
        folder: The folder of its results.json.
        model: What the model is called.
        task: What the task is called, the same for all its sessions.
        classes: Names of the classes, in the order of their numbers, where known.
        source: Where the model is from, as far as its config says.
        facts: What is known of the model: `sha256`, `parameters`, `flops`, `tiles_per_second`, ...
        metric: The metric of eva's head that chooses its checkpoint, where known.
        metrics: Values of each run, by metric, by split.
        measured: What our measures found, by split.
    """

    folder: Path
    model: str
    task: str
    classes: tuple[str, ...] | None
    source: str | None
    facts: dict[str, Any]
    metric: str | None
    metrics: dict[str, dict[str, tuple[float, ...]]]
    measured: dict[str, Measured]


def read_sessions(results: Sequence[str]) -> list[Session]:
    """Reads the sessions of some folders.

    Args:
        results: Folders of sessions, folders to be searched for them, or results.json files;
            `LABEL=PATH` says what the model is called.

    Returns:
        The sessions in the order given, those of a folder in the order of their paths; runs that
        trained an encoder and evaluated none are left out.

    Raises:
        UserError: There are none, or one cannot be read, or its model or task cannot be told, or
            two models have the same name.
    """
    sessions: dict[Path, Session] = {}
    for given in results:
        label, path = _split_label(given)
        for folder in _find(path):
            config = read_config(folder / CONFIG)
            if not config.is_training and folder.resolve() not in sessions:
                sessions[folder.resolve()] = _read(folder, label, config)
    if not sessions:
        raise UserError(
            f"No evaluation is in {', '.join(results)}: expected results.json files of "
            "`eva predict_fit` or `eva fit` on a benchmark config."
        )
    _check_names(list(sessions.values()))
    titles: dict[str, str] = {}
    return [
        dataclasses.replace(
            session, task=titles.setdefault(task_key(session.task), task_title(session.task))
        )
        for session in sessions.values()
    ]


def _split_label(given: str) -> tuple[str | None, Path]:
    label, equals, path = given.partition("=")
    if equals and not Path(given).exists():
        return label, Path(path)
    return None, Path(given)


def _find(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist. Expected a folder with results of eva.")
    files = [path] if path.is_file() else sorted(path.rglob(RESULTS))
    if not files or files[0].name != RESULTS:
        raise UserError(
            f"No {RESULTS} is in {path}. Expected the folder that eva wrote its results to "
            "(OUTPUT_ROOT), or one above it."
        )
    # A published student has a results.json of its own.
    yield from (file.parent for file in files if not (file.parent / WEIGHTS).exists())


def _read(folder: Path, label: str | None, config: SessionConfig) -> Session:
    measures = next(
        (
            facts.parent
            for pattern in ("measures/facts.json", "run_*/measures/facts.json")
            for facts in sorted(folder.glob(pattern), key=_natural)
        ),
        None,
    )
    facts = _read_json(measures / "facts.json") if measures else {}
    model = label or facts.get("model", {}).get("name") or config.model
    task = facts.get("task") or config.task
    if not model:
        raise UserError(
            f"{folder} has no {CONFIG} that says its model. Give it a name: "
            f"g2l report NAME={folder} ..."
        )
    if not task:
        raise UserError(
            f"{folder} has no {CONFIG} that says its task. Put the config that it ran with beside "
            f"its {RESULTS}."
        )
    metrics = _read_metrics(folder / RESULTS)
    measured = {split: found for split in SPLITS if (found := _measured(measures, split))}
    if not measured and not any(metrics.values()):
        raise UserError(f"{folder / RESULTS} holds no metrics. Leave it out, or run it again.")
    return Session(
        folder=folder,
        model=model,
        task=task,
        classes=tuple(facts["classes"]) if facts.get("classes") else None,
        source=config.model,
        facts=facts.get("model", {}),
        metric=config.metric,
        metrics=metrics,
        measured=measured,
    )


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({in_one_line(error)}). Run its benchmark again, or leave it out."
        ) from error


def _read_metrics(path: Path) -> dict[str, dict[str, tuple[float, ...]]]:
    """Values of each run, by metric without its split, by split; of a split's first dataset."""
    try:
        stages = _read_json(path)["metrics"]
        found = {
            split: {
                name.removeprefix(f"{split}/").removesuffix("/dataloader_idx_0"): tuple(
                    float(value) for value in statistics["values"]
                )
                for name, statistics in stages[split][0].items()
            }
            for split in SPLITS
            if stages.get(split)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not one of eva's results: expected metrics of val and test with the values "
            "of each run."
        ) from error
    return found


def _measured(folder: Path | None, split: str) -> Measured | None:
    path = folder and folder / f"{split}.json"
    if path is None or not path.is_file():
        return None
    found = _read_json(path)
    predictions = path.with_suffix(".parquet")
    try:
        return Measured(
            values=dict(found["values"]),
            undefined=dict(found["undefined"]),
            intervals={
                name: (ends["low"], ends["high"])
                for name, ends in found["details"].get("intervals", {}).items()
                if ends["low"] is not None and ends["high"] is not None
            },
            predictions=predictions if predictions.is_file() else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not one of EmbeddingMeasures' files. Run its benchmark again."
        ) from error


def _check_names(sessions: list[Session]) -> None:
    """Raises where one name stands for several models."""
    for identity in ("sha256", "source"):
        known: dict[str, tuple[Any, Session]] = {}
        for session in sessions:
            own = session.facts.get("sha256") if identity == "sha256" else session.source
            if own is None:
                continue
            other, first = known.setdefault(session.model, (own, session))
            if other != own:
                what = "weights" if identity == "sha256" else f"models ({other} and {own})"
                raise UserError(
                    f"{first.folder} and {session.folder} are both called {session.model}, and are "
                    f"of different {what}. Name one of them: g2l report NAME={session.folder} ..."
                )
