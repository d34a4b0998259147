"""Finding and reading eva's sessions: results.json, and the files of EmbeddingMetrics."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.evaluation.metric_files import ALL_SPLITS, EVALUATED, TRAINED_ON
from g2l_plugin.evaluation.training_patients import Overlap
from g2l_plugin.report.config import CONFIG, SessionConfig, read_config, task_key, task_title

RESULTS = "results.json"
"""Name of the file in which eva saves the metrics of a session."""

SPLITS = ("test", "val")
"""Splits that are evaluated, the preferred one first."""


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """What EmbeddingMetrics saved for one split.

    Attributes:
        file: The file.
        values: Values by metric.
        undefined: Reasons why metrics are undefined, by metric.
        intervals: Low and high end of the interval, by metric; not all metrics have one.
        predictions: Parquet file with a row per tile; None if there is none.
        teacher_root: Folder of the teacher's embeddings that CKA compares with; None if there is
            none.
        overlaps: Evaluated patients that the model was distilled on, by `EVALUATED` and
            `ALL_SPLITS`; one that is absent is unknown.
    """

    file: Path
    values: dict[str, float]
    undefined: dict[str, str]
    intervals: dict[str, tuple[float, float]]
    predictions: Path | None
    teacher_root: str | None = None
    overlaps: dict[str, Overlap] = dataclasses.field(default_factory=dict)

    def overlap_of(self, metric: str) -> Overlap | None:
        """The patients that were trained on among those of a metric; None if unknown."""
        of_all = self.overlaps.get(ALL_SPLITS)
        if of_all and (metric in of_all.values or metric in of_all.undefined):
            return of_all
        return self.overlaps.get(EVALUATED)


@dataclasses.dataclass(frozen=True)
class Session:
    """One session of eva: a model on a task.

    Attributes:
        folder: The folder of its results.json.
        model: Name of the model.
        task: Name of the task, the same in all its sessions.
        classes: Names of the classes, in the order of their labels; None if unknown.
        source: Where the model comes from, according to the config; None if unknown.
        facts: Facts about the model: `sha256`, `parameters`, `flops`, `tiles_per_second`, ...
        facts_file: The file of these facts; None if there is none.
        monitor: The metric that selects the checkpoint of eva's head; None if unknown.
        run_values: The value of each run, by split and metric, from results.json.
        split_metrics: What EmbeddingMetrics saved, by split.
    """

    folder: Path
    model: str
    task: str
    classes: tuple[str, ...] | None
    source: str | None
    facts: dict[str, Any]
    facts_file: Path | None
    monitor: str | None
    run_values: dict[str, dict[str, tuple[float, ...]]]
    split_metrics: dict[str, SplitMetrics]

    def tile_columns(self, split: str) -> list[str]:
        """Names of the columns of the table of tiles; empty if there is no table.

        Raises:
            UserError: The table is damaged.
        """
        path = self._predictions(split)
        try:
            return pyarrow.parquet.read_schema(path).names if path else []
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    def read_tiles(self, split: str, columns: Sequence[str]) -> pd.DataFrame:
        """Reads those of the columns that the table of tiles has.

        Raises:
            UserError: The table is damaged.
        """
        path, existing = self._predictions(split), self.tile_columns(split)
        try:
            return pd.read_parquet(path, columns=[name for name in columns if name in existing])
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    @property
    def trained_on(self) -> str:
        """How many evaluated patients the model was distilled on: `12 of 80`, or `not known`."""
        metrics = next((self.split_metrics[s] for s in SPLITS if s in self.split_metrics), None)
        overlap = metrics.overlaps.get(EVALUATED) if metrics else None
        return overlap.count if overlap else "not known"

    def _predictions(self, split: str) -> Path | None:
        metrics = self.split_metrics.get(split)
        return metrics.predictions if metrics else None


def read_sessions(results: Sequence[str]) -> list[Session]:
    """Reads the sessions in some folders.

    Args:
        results: Session folders, folders above them, or results.json files. `LABEL=PATH` names
            the model.

    Returns:
        The sessions in the given order; those below one folder are sorted by path. Sessions that
        trained an encoder are left out.

    Raises:
        UserError: There are no sessions, one cannot be read, its model or task is unknown, or two
            models have the same name.
    """
    sessions: dict[Path, Session] = {}
    for argument in results:
        label, path = _split_label(argument)
        for folder in _find(path):
            config = read_config(folder / CONFIG)
            if not config.is_training and folder.resolve() not in sessions:
                sessions[folder.resolve()] = _read(folder, label, config)
    if not sessions:
        raise UserError(
            f"No evaluation is in {', '.join(results)}: expected {RESULTS} files of "
            "`eva predict_fit` or `eva fit` with a benchmark config."
        )
    _check_names(list(sessions.values()))
    titles: dict[str, str] = {}
    return [
        dataclasses.replace(
            session, task=titles.setdefault(task_key(session.task), task_title(session.task))
        )
        for session in sessions.values()
    ]


def _split_label(argument: str) -> tuple[str | None, Path]:
    label, equals, path = argument.partition("=")
    if equals and not Path(argument).exists():
        return label, Path(path)
    return None, Path(argument)


def _find(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist. Expected a folder with results of eva.")
    files = [path] if path.is_file() else sorted(path.rglob(RESULTS))
    if not files or files[0].name != RESULTS:
        raise UserError(
            f"No {RESULTS} is in {path}. Expected the folder that eva wrote its results to "
            "(OUTPUT_ROOT), or one above it."
        )
    # The folder of a published student also has a results.json.
    yield from (file.parent for file in files if not (file.parent / WEIGHTS).exists())


def _read(folder: Path, label: str | None, config: SessionConfig) -> Session:
    facts_files = (
        file
        for pattern in ("metrics/facts.json", "run_*/metrics/facts.json")
        for file in sorted(folder.glob(pattern), key=_natural)
    )
    facts_file = next(facts_files, None)
    facts = _read_json(facts_file) if facts_file else {}
    if facts_file and not _are_facts(facts):
        raise UserError(f"{facts_file} is not a file of EmbeddingMetrics. Run its benchmark again.")
    model = label or facts.get("model", {}).get("name") or config.model
    task = facts.get("task") or config.task
    if not model:
        raise UserError(
            f"{folder} has no {CONFIG} that names its model. Name it: g2l report NAME={folder} ..."
        )
    if not task:
        raise UserError(
            f"{folder} has no {CONFIG} that names its task. Copy the config that it ran with to "
            "this folder."
        )
    run_values = _read_run_values(folder / RESULTS)
    split_metrics = {
        split: _read_split_metrics(file)
        for split in SPLITS
        if facts_file and (file := facts_file.with_name(f"{split}.json")).is_file()
    }
    if not split_metrics and not any(run_values.values()):
        raise UserError(f"{folder / RESULTS} holds no metrics. Leave it out, or run it again.")
    return Session(
        folder=folder,
        model=model,
        task=task,
        classes=tuple(facts["classes"]) if facts.get("classes") else None,
        source=config.model,
        facts=facts.get("model", {}),
        facts_file=facts_file,
        monitor=config.monitor,
        run_values=run_values,
        split_metrics=split_metrics,
    )


def _are_facts(facts: Any) -> bool:
    if not isinstance(facts, dict) or not isinstance(facts.get("model", {}), dict):
        return False
    classes = facts.get("classes") or []
    names = [facts.get("task"), facts.get("model", {}).get("name")]
    return isinstance(classes, list) and all(
        name is None or isinstance(name, str) for name in (*names, *classes)
    )


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path | None, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged ({in_one_line(error)}). Run its benchmark again, or leave it out."
    )


def _read_run_values(path: Path) -> dict[str, dict[str, tuple[float, ...]]]:
    """Reads the values of a split's first dataset, by metric without the name of the split."""
    try:
        stages = _read_json(path)["metrics"]
        return {
            split: {
                name.removeprefix(f"{split}/").removesuffix("/dataloader_idx_0"): tuple(
                    float(value) for value in statistics["values"]
                )
                for name, statistics in stages[split][0].items()
            }
            for split in SPLITS
            if stages.get(split)
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold results of eva: expected metrics of val and test with the "
            "values of each run."
        ) from error


def _read_split_metrics(path: Path) -> SplitMetrics:
    saved = _read_json(path)
    predictions = path.with_suffix(".parquet")
    try:
        return SplitMetrics(
            file=path,
            values={name: float(value) for name, value in saved["values"].items()},
            undefined={name: str(reason) for name, reason in saved["undefined"].items()},
            intervals={
                name: (float(ends["low"]), float(ends["high"]))
                for name, ends in saved["details"].get("intervals", {}).items()
                if ends["low"] is not None and ends["high"] is not None
            },
            predictions=predictions if predictions.is_file() else None,
            teacher_root=saved["details"].get("teacher_root"),
            overlaps={name: Overlap(**own) for name, own in saved.get(TRAINED_ON, {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a file of EmbeddingMetrics. Run its benchmark again."
        ) from error


def _check_names(sessions: list[Session]) -> None:
    """Raises if two models have the same name."""
    first_of: dict[tuple[str, str], tuple[Any, Session]] = {}
    for session in sessions:
        identities = {"weights": session.facts.get("sha256"), "models": session.source}
        for what, identity in identities.items():
            if identity is None:
                continue
            other, first = first_of.setdefault((what, session.model), (identity, session))
            if other != identity:
                details = f" ({other} and {identity})" if what == "models" else ""
                raise UserError(
                    f"{first.folder} and {session.folder} are both called {session.model}, but "
                    f"have different {what}{details}. Name one of them: "
                    f"g2l report NAME={session.folder} ..."
                )
