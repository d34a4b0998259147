"""The models of a report: their weights, size and speed."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.report.sessions import Session


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a model embeds tiles on one device.

    Attributes:
        device: Name of the device.
        tiles_per_second: Median over sessions.
        peak_memory_bytes: Maximum over sessions; None if it was not measured.
        batch_size: Tiles per batch; None if unknown, or if sessions differ.
        input_size: Side of a tile in pixels; None if unknown, or if sessions differ.
        middle_half: Quartiles of the tiles per second over rounds in turns; None if each session
            timed its own model.
        files: The files of the sessions that measured it.
    """

    device: str
    tiles_per_second: float
    peak_memory_bytes: int | None
    batch_size: int | None
    input_size: int | None
    middle_half: tuple[float, float] | None = None
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, as its sessions describe it; None is unknown.

    Attributes:
        name: Name of the model.
        sha256: SHA-256 of its weights.
        parameters: Number of parameters.
        flops: Floating-point operations per tile.
        embedding_dim: Width of its embeddings.
        speeds: Its speed on each device.
        parameters_file: The file that the number of parameters is from.
    """

    name: str
    sha256: str | None
    parameters: int | None
    flops: int | None
    embedding_dim: int | None
    speeds: tuple[Speed, ...]
    parameters_file: Path | None = None


def describe_models(
    sessions: Sequence[Session], speeds: Mapping[str, Speed] | None = None
) -> list[Model]:
    """Collects what sessions know about their models, in the order of the sessions.

    Args:
        sessions: The sessions.
        speeds: Speeds that were measured in turns, by the hash of the model's weights: they replace
            those of the sessions. None keeps these.
    """
    facts: dict[str, list[dict[str, Any]]] = {}
    for session in sessions:
        own = session.facts | {"file": session.facts_file}
        facts.setdefault(session.model, []).append(own)
    models = [_describe(name, own) for name, own in facts.items()]
    if speeds is None:
        return models
    found = [speeds.get(model.sha256 or "") for model in models]
    return [
        dataclasses.replace(model, speeds=(speed,) if speed else ())
        for model, speed in zip(models, found, strict=True)
    ]


def read_speeds(path: Path) -> dict[str, Speed]:
    """Reads what `g2l speed` has written: the fastest batch of each model, by its weights' hash.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        found = json.loads(path.expanduser().read_text())
        return {
            model["sha256"]: Speed(
                device=f"{found['device']}, {found['precision']}",
                tiles_per_second=batch["tiles_per_second"],
                peak_memory_bytes=batch["peak_memory_bytes"],
                batch_size=batch["batch_size"],
                input_size=model["input_size"],
                middle_half=(batch["low"], batch["high"]),
                files=(path.expanduser().resolve(),),
            )
            for model in found["models"]
            for batch in sorted(model["batches"], key=lambda own: own["tiles_per_second"])[-1:]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The speeds in {path} cannot be read ({in_one_line(error)}). Give the file that "
            "`g2l speed` writes."
        ) from error


def _describe(name: str, facts: list[dict[str, Any]]) -> Model:
    def first(key: str) -> Any:
        return next((fact[key] for fact in facts if fact.get(key) is not None), None)

    by_device: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        if fact.get("tiles_per_second") and fact.get("device"):
            by_device.setdefault(fact["device"], []).append(fact)
    return Model(
        name=name,
        sha256=first("sha256"),
        parameters=first("parameters"),
        flops=first("flops"),
        embedding_dim=first("embedding_dim"),
        speeds=tuple(_speed(device, own) for device, own in by_device.items()),
        parameters_file=next((f["file"] for f in facts if f.get("parameters") is not None), None),
    )


def _speed(device: str, facts: list[dict[str, Any]]) -> Speed:
    def common(key: str) -> int | None:
        values = {fact.get(key) for fact in facts}
        return values.pop() if len(values) == 1 else None

    peaks = [fact["peak_memory_bytes"] for fact in facts if fact.get("peak_memory_bytes")]
    return Speed(
        device=device,
        tiles_per_second=statistics.median(fact["tiles_per_second"] for fact in facts),
        peak_memory_bytes=max(peaks, default=None),
        batch_size=common("batch_size"),
        input_size=common("input_size"),
        files=tuple(fact["file"] for fact in facts if fact["file"]),
    )
