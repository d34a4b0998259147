"""CRoMa: how much nearer the same class of other centres is than other classes of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd
from typing_extensions import override

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.neighbour_kinds import own_group, why_uninformative

CROMA = MetricFamily(
    key="croma",
    title="Robustness margin (CRoMa)",
    about="How much nearer tiles of the class in other centres are than tiles of other classes in "
    "the same centre, -1 to 1: above 0, biology outweighs the hospital (arXiv 2607.25497).",
    pattern="CRoMa",
    neutral=0.0,
)


class CRoMa(EmbeddingMetric):
    """The margin, `CRoMa`, and how it is over the worst tiles, `CRoMaTail`, `CRoMaConfounded`.

    Computed by its authors' package (https://github.com/clemsgrs/croma). The margin of a tile is
    (d_OS - d_SO) / (d_OS + d_SO), of the mean cosine distances to the m nearest tiles of the same
    class in other centres (SO) and of other classes in the same centre (OS). `CRoMa` is its
    median, `CRoMaTail` the mean of the worst tenth of the tiles, `CRoMaConfounded` the share of
    tiles at or below 0. Tiles of the same slide are never neighbours.

    Source: Grisi et al. 2026, arXiv 2607.25497.

    Examples:
        >>> import numpy as np
        >>> values = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]], np.float32)
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> centres = np.array(["x", "y", "x", "y", "x", "y"])
        >>> tiles = Embeddings(values, labels, np.array(list("abcdef")), {"centre": centres})
        >>> result = CRoMa(m=1).compute(tiles, tiles)
        >>> result.values["CRoMa"] > 0.9, result.values["CRoMaConfounded"]
        (True, 0.0)
    """

    def __init__(
        self, m: int = 5, centre: str = "centre", exclude: Sequence[str] = ("slide", "patient")
    ) -> None:
        """Initializes the metric.

        Args:
            m: Neighbours of each kind; 5 is the paper's.
            centre: Group that holds the centre, or another confounder.
            exclude: Groups whose tiles are never neighbours of each other; the first known one is
                used. If none is known, only the tile itself is excluded.

        Raises:
            UserError: The package is not installed, or m is below 1.
        """
        try:
            import croma  # noqa: F401
        except ImportError as error:
            raise UserError(
                "CRoMa is computed by its authors' package. Install it: pip install "
                "'g2l-plugin[croma]'"
            ) from error
        if m < 1:
            raise UserError(f"CRoMa needs at least 1 neighbour of each kind, but `m` is {m}.")
        self.m, self.centre, self.exclude = m, centre, tuple(exclude)

    @property
    @override
    def names(self) -> Sequence[str]:
        return ["CRoMa", "CRoMaTail", "CRoMaConfounded"]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        import croma

        if reason := why_uninformative(evaluated, self.centre):
            return MetricResult({}, dict.fromkeys(self.names, reason))
        excluded, own = own_group(evaluated, self.exclude)
        tiles = pd.DataFrame(
            {
                "sample_id": evaluated.names,
                "image_path": evaluated.names,
                "label": evaluated.labels.astype(str),
                "group_id": own,
                "center": evaluated.groups[self.centre],
            }
        )
        values = np.ascontiguousarray(evaluated.values, np.float32)
        try:
            found = croma.CRoMa.compute(values, tiles, confounder_column="center", m=self.m)
        except (RuntimeError, ValueError) as error:  # tiles without m neighbours of either kind
            return MetricResult({}, dict.fromkeys(self.names, in_one_line(error)))
        margins = np.asarray(found.sample_values_aligned, float)  # (tiles,)
        interval = bootstrap_interval(lambda rows: float(np.median(margins[rows])), evaluated.units)
        return MetricResult(
            {
                "CRoMa": float(found.value),
                "CRoMaTail": float(found.ltm_alpha),
                "CRoMaConfounded": float(found.f0),
            },
            details={
                "intervals": {"CRoMa": interval.ends()},
                "croma": {"m": self.m, "exclude": excluded or "tile", "version": version("croma")},
            },
        )
