"""Embeddings of labelled tiles: the input of every metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of N tiles (or slides) by one encoder, with their labels and metadata.

    Attributes:
        values: float32 (N, D).
        labels: Class of each tile, int64 (N,).
        names: Name of each tile, str (N,): unique, and the same for every encoder.
        groups: Metadata of each tile, str (N,), by name: `patient`, `slide`, `centre`, ...
        split: Split of the task: `train`, `val` or `test`; empty if unknown or several.
        images: Fingerprint of the tiles' images, the same for every encoder; empty if unknown.
    """

    values: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    groups: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    split: str = ""
    images: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def units(self) -> np.ndarray:
        """Statistically independent unit of each tile, str (N,): its patient, slide or itself."""
        for name in ("patient", "slide"):
            if name in self.groups:
                return self.groups[name]
        return self.names


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenates several splits of a task; only groups that all of them have are kept."""
    groups = set.intersection(*(set(part.groups) for part in parts))
    return Embeddings(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.names for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in groups},
    )


def take(tiles: Embeddings, rows: np.ndarray) -> Embeddings:
    """Takes some tiles, by their indices (K,) in that order."""
    return Embeddings(
        tiles.values[rows],
        tiles.labels[rows],
        tiles.names[rows],
        {name: values[rows] for name, values in tiles.groups.items()},
        tiles.split,
    )
