"""Counts neighbours by whether they share the tile's class and its centre: SS, SO, OS, OO."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.neighbours import Distance, nearest

KINDS = ("SS", "SO", "OS", "OO")
"""The first letter is the class, the second the centre: the same or another."""

NO_INFORMATIVE = "no neighbour shares only the class or only the centre"
"""Why PathoROB's index is undefined."""


def count_kinds(
    tiles: Embeddings,
    centres: np.ndarray,
    own: np.ndarray,
    units: np.ndarray,
    n_units: int,
    k: int,
    distance: Distance = "cosine",
    device: str = "auto",
) -> np.ndarray:
    """Counts SS, SO, OS and OO among the first 1, 2, ... k neighbours of each unit's tiles.

    Args:
        tiles: The N tiles.
        centres: Centre of each tile (N,).
        own: Group of each tile (N,), e.g. its slide, whose tiles are not its neighbours.
        units: Number of each tile's unit (N,), e.g. its patient.
        n_units: Number of units.
        k: Number of neighbours.
        distance: `cosine` or `euclidean`.
        device: Where to compute; `auto` uses a CUDA device if there is one.

    Returns:
        Counts in the order of `KINDS`, int (k, n_units, 4).

    Raises:
        UserError: A tile has fewer than k possible neighbours, or an embedding has no distance.
    """
    indices, _ = nearest(
        tiles.values,
        tiles.values,
        k,
        distance,
        exclude=(own, own),
        device=device,
        description="Robustness index",
    )
    _, centres = np.unique(centres, return_inverse=True)
    same_class = tiles.labels[indices] == tiles.labels[:, None]
    same_centre = centres[indices] == centres[:, None]
    kinds = units[:, None] * 4 + 2 * ~same_class + ~same_centre
    counts = [np.bincount(column, minlength=4 * n_units).reshape(-1, 4) for column in kinds.T]
    return np.cumsum(counts, axis=0)


def why_uninformative(tiles: Embeddings, centre: str) -> str | None:
    """Why no index of these tiles is defined: an unknown or a single centre, or a single class."""
    if centre not in tiles.groups:
        return f"the {centre} of the tiles is unknown"
    for name, values in ((centre, tiles.groups[centre]), ("class", tiles.labels)):
        if len(np.unique(values)) < 2:
            return f"all tiles have the same {name}, {values[0]}"
    return None


def own_group(tiles: Embeddings, exclude: Sequence[str]) -> tuple[str | None, np.ndarray]:
    """What the tiles belong to whose neighbours must be from elsewhere.

    Args:
        tiles: The N tiles.
        exclude: Names of groups; the first known one is used.

    Returns:
        Its name, and each tile's group (N,); None and the tiles' own names if none is known.
    """
    known = next((name for name in exclude if name in tiles.groups), None)
    return known, tiles.names if known is None else tiles.groups[known]


def de_jong_index(counts: np.ndarray) -> float:
    """(SS + SO) / (SS + OS) of counts (4,), from de Jong et al. 2025; NaN if undefined."""
    ss, so, os, _ = counts
    return float((ss + so) / (ss + os)) if ss + os else np.nan


def pathorob_index(counts: np.ndarray) -> float:
    """SO / (SO + OS) of counts (4,), from Kömen et al. 2025; NaN if undefined."""
    _, so, os, _ = counts
    return float(so / (so + os)) if so + os else np.nan


def of_units(
    index: Callable[[np.ndarray], float], counts: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Returns a function that computes the index of some units from their counts (units, 4)."""
    return lambda units: index(counts[units].sum(0))
