"""The models of a report: their weights, size and speed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from g2l_plugin.reporting.sessions import Session


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a model embeds on one device.

    Attributes:
        device: The device.
        tiles_per_second: Median over sessions.
        peak_memory_bytes: Most memory over sessions; None where it was not measured.
        batch_size: Tiles per batch; None where sessions differ, or do not say.
        input_size: Side of a tile, in pixels; None likewise.
    """

    device: str
    tiles_per_second: float
    peak_memory_bytes: int | None
    batch_size: int | None
    input_size: int | None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, as far as its sessions know it.

    Attributes:
        name: What it is called.
        sha256: SHA-256 of its weights.
        parameters: Number of weights.
        flops: Floating-point operations for a tile.
        embedding_dim: Width of its embeddings.
        speeds: Its speeds, one a device.
    """

    name: str
    sha256: str | None
    parameters: int | None
    flops: int | None
    embedding_dim: int | None
    speeds: tuple[Speed, ...]


def describe_models(sessions: Sequence[Session]) -> list[Model]:
    """Puts together what sessions know of their models, in the order of the sessions."""
    together: dict[str, list[Session]] = {}
    for session in sessions:
        together.setdefault(session.model, []).append(session)
    return [_describe(name, own) for name, own in together.items()]


def _describe(name: str, sessions: list[Session]) -> Model:
    facts = [session.facts for session in sessions]

    def first(key: str) -> int | None:
        return next((fact[key] for fact in facts if fact.get(key) is not None), None)

    by_device: dict[str, list[dict]] = {}
    for fact in facts:
        if fact.get("tiles_per_second") and fact.get("device"):
            by_device.setdefault(fact["device"], []).append(fact)
    return Model(
        name=name,
        sha256=next((fact["sha256"] for fact in facts if fact.get("sha256")), None),
        parameters=first("parameters"),
        flops=first("flops"),
        embedding_dim=first("embedding_dim"),
        speeds=tuple(_speed(device, own) for device, own in by_device.items()),
    )


def _speed(device: str, facts: list[dict]) -> Speed:
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
    )
