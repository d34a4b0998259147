"""Embeddings in two dimensions, for the plots of the report: PCA, and UMAP if it is installed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from loguru import logger
from sklearn.decomposition import PCA

from g2l_plugin.errors import in_one_line

_MAX_PCA = 20_000
"""Maximum number of tiles that the PCA is fitted on, evenly spread; all tiles are projected."""

_MAX_UMAP = 3_000
"""Maximum number of tiles of UMAP, evenly spread: as many as a plot shows."""

_N_NEIGHBOURS = 15
"""UMAP's own default."""


def map_embeddings(values: np.ndarray) -> dict[str, np.ndarray]:
    """Maps embeddings to two dimensions, the same ones each time.

    Source: UMAP is McInnes, Healy and Melville 2018, arXiv 1802.03426 (the package `umap-learn`),
    from the principal components (Kobak and Linderman 2021, doi 10.1038/s41587-020-00809-z), else
    with its own defaults.

    Args:
        values: Embeddings (N, D).

    Returns:
        `pca` (N, 2), and `umap` (N, 2) if `umap-learn` is installed and there are more tiles than
        UMAP takes neighbours; its rows are NaN for tiles that were left out. Empty for fewer than
        two tiles or features.
    """
    if min(values.shape) < 2:
        return {}
    pca = PCA(2, random_state=0).fit(values[_evenly(values, _MAX_PCA)])
    maps = {"pca": pca.transform(values).astype(np.float32)}
    if len(values) > _N_NEIGHBOURS and (umap := _import_umap()):
        # With several threads, or with the spectral start if the graph is in parts, the map would
        # not be the same each time.
        mapping = umap(
            n_components=2, n_neighbors=_N_NEIGHBOURS, init="pca", random_state=0, n_jobs=1
        )
        some = _evenly(values, _MAX_UMAP)
        maps["umap"] = np.full((len(values), 2), np.nan, np.float32)
        maps["umap"][some] = mapping.fit_transform(values[some])
    return maps


def _evenly(values: np.ndarray, at_most: int) -> slice:
    return slice(None, None, math.ceil(len(values) / at_most))


def _import_umap() -> Any:
    """The class `umap.UMAP`; None if there is no such package."""
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        if error.name == "umap":
            return None
        reason = in_one_line(error)
    except ImportError as error:  # another package of this name, or versions that do not match
        reason = in_one_line(error)
    else:
        return UMAP
    logger.warning(f"umap-learn cannot be imported ({reason}): there will be no plots by UMAP.")
    return None
