"""Whether a tile keeps its embedding when its image is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.neighbours import check_values, nearest


@dataclasses.dataclass(frozen=True)
class Invariance:
    """How alike the embeddings of tiles and of their changed images are.

    Attributes:
        cosine: Mean cosine similarity of a tile and its changed self.
        relative: The same on a scale where different tiles have 0 and equal embeddings 1:
            (cosine - baseline) / (1 - baseline). Below 0, a change moves a tile further than to
            another tile.
        nearest: Share of tiles whose changed self is nearer than every other tile.
    """

    cosine: float
    relative: float
    nearest: float


def measure_invariance(
    tiles: np.ndarray, changed: Mapping[str, np.ndarray], device: str = "auto"
) -> tuple[float, dict[str, Invariance]]:
    """Compares the embeddings of tiles with those of their changed images.

    A high cosine says little by itself: in many encoders all tiles lie in a narrow cone (Ethayarajh
    2019, arXiv 1909.00512). So it is set against that of different tiles.

    Args:
        tiles: Embeddings of the tiles, (N, D).
        changed: Embeddings of the same tiles, changed, (N, D), by name of the change.
        device: Where to find neighbours; `auto` uses a CUDA device if there is one.

    Returns:
        The baseline, the mean cosine similarity of two different tiles, and the invariance to each
        change.

    Raises:
        UserError: There are fewer than two tiles, all have the same embedding, or an embedding is
            not finite or all zeros.

    Examples:
        >>> import numpy as np
        >>> tiles = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> baseline, found = measure_invariance(tiles, {"swapped": tiles[::-1]}, device="cpu")
        >>> baseline, found["swapped"]
        (0.0, Invariance(cosine=0.0, relative=0.0, nearest=0.0))
    """
    if len(tiles) < 2:
        raise UserError(f"Got {len(tiles)} tile. Invariance needs two or more to compare with.")
    for embeddings in (tiles, *changed.values()):
        check_values(embeddings, "cosine")
    directions = _directions(tiles)
    n = len(directions)
    total = directions.sum(0)
    baseline = float((total @ total - n) / (n * (n - 1)))
    if baseline > 1 - 1e-6:
        raise UserError(
            f"All {n:,} tiles have the same embedding. Check the model, or give different tiles."
        )
    each = np.arange(n)
    _, others = nearest(tiles, tiles, 1, exclude=(each, each), device=device)
    found = {}
    for name, embeddings in changed.items():
        cosines = np.einsum("nd,nd->n", directions, _directions(embeddings))
        mean = float(cosines.mean())
        found[name] = Invariance(
            cosine=mean,
            relative=(mean - baseline) / (1 - baseline),
            nearest=float((cosines > others[:, 0]).mean()),
        )
    return baseline, found


def _directions(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of length 1, in double precision."""
    embeddings = embeddings.astype(np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
