"""Robustness across scanners and stains, on the same tissue digitised in several ways (PLISM)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.neighbours import (
    check_values,
    choose_device,
    full_precision,
    to_device,
)

_GROUPS = ("scanner", "stain", "location")
_KINDS = {
    "scanner": "with one stain and two scanners",
    "stain": "with two stains and one scanner",
    "both": "with two stains and two scanners",
    "all": "with two stains or two scanners",
}
_ROWS = 2048
"""Tiles of a slide that are compared with another slide at a time."""

_ROUNDING = 1e-6
"""Cosines that differ by less count as equal, so a collapsed encoder gets no lucky matches."""

COSINE = MetricFamily(
    key="cosine",
    title="Similarity across scanners and stains",
    about="Cosine similarity of tiles of the same location with two scanners or stains, median "
    "over pairs of slides (arXiv 2501.16239). An encoder that gives all tiles the same embedding "
    "has 1: read it together with the retrieval.",
    pattern=r"CosineSimilarity/\w+",
)
RETRIEVAL = MetricFamily(
    key="retrieval",
    title="Retrieval across scanners and stains",
    about="How often the tile of the same location is among the nearest tiles of both slides, "
    "median over pairs of slides (arXiv 2501.16239).",
    pattern=r"Top(?P<k>\d+)Accuracy/\w+",
)


class MatchedRobustness(EmbeddingMetric):
    """Similarity of tiles of the same location with two scanners or stains, as on PLISM.

    `CosineSimilarity/KIND` is the mean cosine similarity of two matched tiles. `TopkAccuracy/KIND`
    (`Top1Accuracy`, ...) is how often a tile's match is among its k nearest of all tiles of both
    slides, averaged over both directions. Values are medians over the pairs of slides that differ
    only in the scanner (`scanner`), only in the stain (`stain`), in `both`, or in any of these
    (`all`). The metric needs the groups `scanner`, `stain` and `location` of the tiles, and
    `patient` for intervals.

    Source: plismbench of Filiot et al. 2025 (arXiv 2501.16239). It keeps half of the locations and
    rounds embeddings to half precision. Here all locations that both slides have are matched, in
    single precision, and among equally near tiles the match ranks last.
    """

    def __init__(self, k: Sequence[int] = (1, 3, 5, 10), device: str = "auto") -> None:
        """Initializes the metric.

        Args:
            k: Numbers of nearest tiles.
            device: Where to compute; `auto` uses a CUDA device if there is one.

        Raises:
            UserError: No k is given, or one is below 1.
        """
        if not k or min(k) < 1:
            raise UserError(
                f"The numbers of nearest tiles are {list(k)}. Expected e.g. `k: [1, 10]`."
            )
        self.k, self.device = sorted(set(k)), device
        self._metrics = ["CosineSimilarity", *(f"Top{k}Accuracy" for k in self.k)]

    @property
    @override
    def names(self) -> Sequence[str]:
        return [f"{metric}/{kind}" for kind in _KINDS for metric in self._metrics]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if missing := [name for name in _GROUPS if name not in evaluated.groups]:
            reason = f"the {' and the '.join(missing)} of the tiles is unknown"
            return MetricResult({}, dict.fromkeys(self.names, reason))
        check_values(evaluated.values, "cosine")
        pairs = self._compare(evaluated, _slides_of(evaluated))
        matched = [pair for pair in pairs if pair.n_matched]
        result = MetricResult({}, details={"matched": {}, "intervals": {}})
        for kind, meaning in _KINDS.items():
            of_kind = [pair for pair in matched if kind in ("all", pair.kind)]
            if not of_kind:
                reason = f"no two slides {meaning} have a tile of the same location"
                result.undefined.update({f"{metric}/{kind}": reason for metric in self._metrics})
                continue
            sums, counts = (
                np.stack([getattr(pair, name) for pair in of_kind]) for name in ("sums", "counts")
            )
            for index, metric in enumerate(self._metrics):
                statistic = _median(sums[:, index], counts)
                interval = bootstrap_interval(statistic, np.arange(counts.shape[1]))
                result.values[f"{metric}/{kind}"] = interval.value
                result.details["intervals"][f"{metric}/{kind}"] = interval.ends()
                of_pairs = sums[:, index].sum(1) / counts.sum(1)
                result.details["matched"][f"{metric}/{kind}"] = _spread(of_pairs)
        n_matched = [pair.n_matched for pair in pairs]
        result.details["matched"] |= {
            "pairs": len(pairs),
            "pairs_without_match": len(pairs) - len(matched),
            "fewest_matched_tiles": min(n_matched, default=0),
            "most_matched_tiles": max(n_matched, default=0),
        }
        return result

    def _compare(self, evaluated: Embeddings, slides: list[_Slide]) -> list[_Pair]:
        device = choose_device(self.device)
        unit = np.zeros(len(evaluated), int)
        if "patient" in evaluated.groups:
            unit = np.unique(evaluated.groups["patient"], return_inverse=True)[1]

        def load(slide: _Slide) -> torch.Tensor:
            return F.normalize(to_device(evaluated.values[slide.rows], device), dim=1)

        pairs = []
        n_pairs = len(slides) * (len(slides) - 1) // 2
        with torch.inference_mode(), full_precision(), tqdm(total=n_pairs, leave=False) as bar:
            bar.set_description("Matched tiles")
            nearest = [_nearest_of_own(load(slide), max(self.k)) for slide in slides]
            for first, a in enumerate(slides):
                x = load(a)
                for second, b in itertools.islice(enumerate(slides), first + 1, None):
                    if max(self.k) > len(a.rows) + len(b.rows) - 1:
                        raise UserError(
                            f"k is {max(self.k)}, but two slides have {len(a.rows)} and "
                            f"{len(b.rows)} tiles. Set k below their sum, or provide more tiles."
                        )
                    _, at_a, at_b = np.intersect1d(
                        a.locations, b.locations, assume_unique=True, return_indices=True
                    )
                    cosine, before = _ranks(x, load(b), at_a, at_b, nearest[first], nearest[second])
                    hits = [(before < k).mean(0) for k in self.k]
                    units = unit[a.rows[at_a]]
                    n_units = unit.max() + 1
                    sums = [np.bincount(units, value, n_units) for value in (cosine, *hits)]
                    counts = np.bincount(units, minlength=n_units)
                    pairs.append(_Pair(a.kind_of(b), np.stack(sums), counts))
                    bar.update()
        return pairs


@dataclasses.dataclass(frozen=True)
class _Slide:
    """The tiles of one scanner and stain: their rows and locations."""

    scanner: str
    stain: str
    rows: np.ndarray
    locations: np.ndarray

    def kind_of(self, other: _Slide) -> str:
        if self.stain == other.stain:
            return "scanner"
        return "stain" if self.scanner == other.scanner else "both"


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Matched tiles of two slides: sums of values (V, U) and numbers of tiles (U,) by patient."""

    kind: str
    sums: np.ndarray
    counts: np.ndarray

    @property
    def n_matched(self) -> int:
        return int(self.counts.sum())


def _slides_of(embeddings: Embeddings) -> list[_Slide]:
    scanners, stains, locations = (embeddings.groups[name] for name in _GROUPS)
    slides = []
    for scanner, stain in sorted(set(zip(scanners.tolist(), stains.tolist(), strict=True))):
        rows = np.flatnonzero((scanners == scanner) & (stains == stain))
        if duplicates := len(rows) - len(np.unique(locations[rows])):
            raise UserError(
                f"{duplicates:,} tiles of scanner {scanner} and stain {stain} have the location of "
                "another tile. Expected one tile per location, scanner and stain."
            )
        slides.append(_Slide(scanner, stain, rows, locations[rows]))
    return slides


def _nearest_of_own(x: torch.Tensor, k: int) -> torch.Tensor:
    """Cosines between each tile and its k nearest tiles of the same slide (N, k)."""
    found = []
    for start in range(0, len(x), _ROWS):
        cosines = x[start : start + _ROWS] @ x.T
        cosines.diagonal(start).fill_(-torch.inf)
        found.append(cosines.topk(min(k, len(x) - 1), dim=1).values)
    return torch.cat(found)


def _ranks(
    x: torch.Tensor,
    y: torch.Tensor,
    at_x: np.ndarray,
    at_y: np.ndarray,
    own_x: torch.Tensor,
    own_y: torch.Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the tiles that are at least as near as the match.

    Args:
        x: Normalised embeddings of one slide (N, D).
        y: Normalised embeddings of another slide (M, D).
        at_x: Rows of the matched tiles in x (P,).
        at_y: Rows of their matches in y (P,).
        own_x: Cosines between each tile of x and its nearest tiles in x (N, k).
        own_y: The same for y (M, k).

    Returns:
        Cosines of the matched tiles (P,), and the number of tiles of both slides that rank before
        the match, seen from x and from y (2, P). At most k tiles of the same slide are counted.
    """
    rows, columns = (torch.from_numpy(at).to(x.device) for at in (at_x, at_y))
    cosine = (x[rows] * y[columns]).sum(1)
    least = cosine - _ROUNDING
    before_x = (own_x[rows] >= least[:, None]).sum(1)
    before_y = (own_y[columns] >= least[:, None]).sum(1)
    # Tiles without a match count nothing.
    of_row = x.new_full((len(x),), torch.inf).scatter(0, rows, least)
    of_column = x.new_full((len(y),), torch.inf).scatter(0, columns, least)
    from_x, from_y = [], torch.zeros(len(y), dtype=torch.int64, device=x.device)
    match = rows.new_full((len(x),), -1).scatter(0, rows, columns)
    for start in range(0, len(x), _ROWS):
        chunk = slice(start, start + _ROWS)
        cosines = x[chunk] @ y.T
        has_match = torch.nonzero(match[chunk] >= 0).flatten()
        cosines[has_match, match[chunk][has_match]] = -torch.inf
        from_x.append((cosines >= of_row[chunk, None]).sum(1))
        from_y += (cosines >= of_column).sum(0)
    before = torch.stack([before_x + torch.cat(from_x)[rows], before_y + from_y[columns]])
    return cosine.cpu().numpy(), before.cpu().numpy()


def _median(sums: np.ndarray, counts: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns a function of units: the median over pairs of their means, from (P, U) arrays."""

    def statistic(units: np.ndarray) -> float:
        weights = np.bincount(units, minlength=counts.shape[1])
        n_tiles = counts @ weights
        drawn = n_tiles > 0
        return float(np.median((sums @ weights)[drawn] / n_tiles[drawn])) if any(drawn) else np.nan

    return statistic


def _spread(of_pairs: np.ndarray) -> dict[str, float]:
    """The statistics over pairs of slides that plismbench reports."""
    low, median, high = np.quantile(of_pairs, [0.25, 0.5, 0.75])
    return {
        "mean": float(of_pairs.mean()),
        "std": float(of_pairs.std()),
        "median": float(median),
        "iqr": float(high - low),
        "pairs": len(of_pairs),
    }
