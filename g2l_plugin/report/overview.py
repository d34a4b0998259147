"""One table of the models first: quality over tasks, robustness, size and speed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from g2l_plugin.metrics.bootstrap import Interval, bootstrap_interval
from g2l_plugin.metrics.metric import MetricFamily
from g2l_plugin.metrics.pathorob_index import PUBLISHED_PATHOROB
from g2l_plugin.metrics.robustness import PATHOROB, ROBUSTNESS
from g2l_plugin.report.config import task_key
from g2l_plugin.report.models import Model
from g2l_plugin.report.tables import ResultTable

_ROBUSTNESS = (PUBLISHED_PATHOROB, PATHOROB, ROBUSTNESS)
"""The first of these families that has a table is the robustness of the overview."""

_SCANNERS = ("plism",)
"""Tasks whose head and classes are the scanner: a higher accuracy is not better."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A model in the overview; None is unknown.

    Attributes:
        model: Name of the model.
        rank: Mean rank over the tasks, 1 is best, with its interval over tasks.
        robustness: Mean over tasks.
        parameters: Number of parameters.
        tiles_per_second: Speed on the device of the overview.
        is_on_frontier: Whether no other model is as good in rank and in each cost, and better in
            one of them; None if a cost of it is unknown.
        robustness_files: The files that the robustness is computed from.
        parameters_file: The file that the number of parameters is from.
        speed_files: The files that the speed is computed from.
    """

    model: str
    rank: Interval
    robustness: float | None
    parameters: int | None
    tiles_per_second: float | None
    is_on_frontier: bool | None
    robustness_files: tuple[Path, ...]
    parameters_file: Path | None
    speed_files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Overview:
    """The models that have a value on each of some tasks, the best first.

    Attributes:
        quality: The table that the ranks are of.
        n_tasks: Number of its tasks that all these models have.
        robustness: The table of the robustness; None if there is none.
        n_robustness_tasks: Number of its tasks that all these models have.
        device: Device that most models were timed on; None if there is none.
        costs: What the frontier sets quality against: `parameters`, `tiles/s`.
        lines: The models.
        left_out: Models that lack some of these tasks.
    """

    quality: ResultTable
    n_tasks: int
    robustness: ResultTable | None
    n_robustness_tasks: int
    device: str | None
    costs: tuple[str, ...]
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]

    @property
    def about(self) -> str:
        """How to read it, in a few sentences."""
        tasks = f"{self.n_tasks:,} task{'s' * (self.n_tasks != 1)}"
        said = [f"Mean rank over {tasks} by {self.quality.title}: 1 is best."]
        if self.n_tasks > 1:
            said.append("Its 95 % interval is over tasks, as if others like these had been chosen.")
        if self.robustness:
            number = f"{self.n_robustness_tasks:,} task{'s' * (self.n_robustness_tasks != 1)}"
            said.append(f"Robustness is the mean over {number} of: {self.robustness.title}.")
        if self.costs:
            said.append(
                "On the frontier (Pareto): no other model is as good in mean rank and "
                f"{' and '.join(self.costs)}, and better in one of them."
            )
        if self.left_out:
            said.append(f"Not ranked, for lack of tasks: {', '.join(self.left_out)}.")
        return " ".join(said)


def build_overview(
    tables: Sequence[ResultTable], models: Sequence[Model], families: Sequence[MetricFamily]
) -> Overview | None:
    """Ranks the models on the tasks that they share, and sets the ranks against their costs.

    Tied models share the mean of their ranks. The interval is a bootstrap over tasks: how the mean
    rank would change with other tasks like these, not with other patients.

    Args:
        tables: All tables.
        models: Size and speed of the models.
        families: Families of quality; the first that has a table is used.

    Returns:
        None if there are fewer than two models to rank.
    """
    by_family = {table.family: table for table in tables}
    quality = next((by_family[own] for own in families if own in by_family), None)
    if quality is None:
        return None
    every = {model.name: model for model in models}
    columns = [own for own in quality.columns if task_key(own.task) not in _SCANNERS]
    values = [quality.values(column) for column in columns]
    if not values:
        return None

    def shared_by(names: Iterable[str]) -> list[dict[str, dict[str, Any]]]:
        return [own for own in values if own.keys() >= set(names)]

    # As many models on as many tasks as there are: neither a task of few models nor a model of few
    # tasks leaves out the others.
    largest = max(values, key=lambda own: len(own) * len(shared_by(own)))
    names = list(largest)
    shared = shared_by(names)
    if len(names) < 2:
        return None
    means = np.array([[own[name]["mean"] for name in names] for own in shared])  # (tasks, models)
    signed = means if quality.family.smaller_is_better else -means
    ranks = rankdata(signed, axis=1)
    intervals = [_interval(column) for column in ranks.T]

    table = next((by_family[own] for own in _ROBUSTNESS if own in by_family), None)
    of_robustness = _robustness(table, names)
    ranked = [every[name] for name in names]
    device = _device(ranked)
    timed = [next((s for s in model.speeds if s.device == device), None) for model in ranked]
    speeds = [speed.tiles_per_second if speed else None for speed in timed]
    parameters = [model.parameters for model in ranked]
    used: dict[str, Sequence[float | None]] = {}
    if any(parameters):
        used["parameters"] = parameters
    if all(speeds):  # those on another device cannot be compared
        used["tiles/s"] = [-speed for speed in speeds if speed]
    frontier = _frontier([interval.value for interval in intervals], list(used.values()))
    lines = []
    for place, model in enumerate(ranked):
        own = [task[model.name] for task in of_robustness]
        line = Line(
            model=model.name,
            rank=intervals[place],
            robustness=statistics.fmean(value["mean"] for value in own) if own else None,
            parameters=model.parameters,
            tiles_per_second=speeds[place],
            is_on_frontier=frontier[place],
            robustness_files=tuple(file for value in own for file in value["files"]),
            parameters_file=model.parameters_file,
            speed_files=speed.files if (speed := timed[place]) else (),
        )
        lines.append(line)
    return Overview(
        quality=quality,
        n_tasks=len(shared),
        robustness=table if of_robustness else None,
        n_robustness_tasks=len(of_robustness),
        device=device,
        costs=tuple(used),
        lines=tuple(sorted(lines, key=lambda line: line.rank.value)),
        left_out=tuple(name for name in every if name not in names),
    )


def _interval(ranks: np.ndarray) -> Interval:
    return bootstrap_interval(lambda rows: float(ranks[rows].mean()), np.arange(len(ranks)))


def _robustness(table: ResultTable | None, names: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """The values of each task that all models have, by model."""
    found = [table.values(column) for column in table.columns] if table else []
    return [own for own in found if own.keys() >= set(names)]


def _device(models: Sequence[Model]) -> str | None:
    """The device that most models were timed on; the first of several."""
    devices = [speed.device for model in models for speed in model.speeds]
    return max(dict.fromkeys(devices), key=devices.count) if devices else None


def _frontier(ranks: Sequence[float], costs: Sequence[Sequence[float | None]]) -> list[bool | None]:
    """Whether models are on the Pareto frontier of ranks and costs, where smaller is better."""
    points = list(zip(ranks, *costs, strict=True))
    known = [point for point in points if None not in point]
    if not costs:
        return [None] * len(points)
    return [
        None if None in point else not any(_dominates(other, point) for other in known)
        for point in points
    ]


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
