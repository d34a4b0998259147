"""PathoROB's lists of tiles: which tiles are in a subset of a list, and in which order.

PathoROB publishes, for each dataset, lists of the tiles that a metric uses
(https://github.com/bifold-pathomics/PathoROB, data/metadata). A tile can be in several lists, and
in several subsets of one: the pairs of classes and centres of tcga_2x2 overlap. Its random draws
depend on the order of a list, so the order is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings

GROUP = "listed"
"""Name of the metadata: entries `list/subset/row`, joined by `;`."""

OUT_OF_DOMAIN = "OOD"
"""The subset of the tiles from other centres, which only test a classifier."""


def join_entries(entries: Iterable[tuple[str, str, int]]) -> str:
    """Writes a tile's entries as text.

    Args:
        entries: Name of the list, subset, and row in the list, counted from 0.
    """
    return ";".join(f"{name}/{subset}/{row}" for name, subset, row in entries)


def subsets_of(tiles: Embeddings, name: str) -> dict[str, np.ndarray]:
    """Finds the tiles of a list.

    Args:
        tiles: Tiles with the metadata `listed`, as `g2l prepare pathorob` writes it.
        name: Name of the list, e.g. `camelyon`.

    Returns:
        Indices of the tiles by subset; both in the order of the list.

    Raises:
        UserError: No tile is in the list.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for _, tile, subset in _entries_of(tiles, name):
        found[subset].append(tile)
    return {subset: np.array(own) for subset, own in found.items()}


def in_domain(tiles: Embeddings, name: str) -> np.ndarray:
    """Indices of the tiles of a list in its order, without out-of-domain ones, each tile once.

    Raises:
        UserError: No such tile is in the list.
    """
    entries = _entries_of(tiles, name)
    own = dict.fromkeys(tile for _, tile, subset in entries if subset != OUT_OF_DOMAIN)
    if not own:
        raise UserError(f"all tiles of PathoROB's list {name} are out of domain")
    return np.array(list(own))


def _entries_of(tiles: Embeddings, name: str) -> list[tuple[int, int, str]]:
    """Row in the list, index of the tile, and subset, in the order of the list."""
    found = []
    for tile, entries in enumerate(tiles.groups.get(GROUP, ())):
        for entry in entries.split(";"):
            own, _, rest = entry.partition("/")
            if own == name:
                subset, _, row = rest.rpartition("/")
                found.append((int(row), tile, subset))
    if not found:
        raise UserError(
            f"no tile is in PathoROB's list {name}: prepare the task with "
            f"`g2l prepare pathorob ... --metadata {name}.csv`, and embed it again"
        )
    return sorted(found)
