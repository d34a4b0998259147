"""All families of metrics, in the order of their tables."""

from __future__ import annotations

import re

from g2l_plugin.metrics.cka import BIASED_CKA, CKA
from g2l_plugin.metrics.clustering_score import CLUSTERING
from g2l_plugin.metrics.croma import CROMA
from g2l_plugin.metrics.few_shot import FEW_SHOT
from g2l_plugin.metrics.gene_expression import EXPRESSION
from g2l_plugin.metrics.knn import KNN
from g2l_plugin.metrics.metric import MetricFamily
from g2l_plugin.metrics.pathorob_index import PUBLISHED_PATHOROB
from g2l_plugin.metrics.performance_drop import PERFORMANCE_DROP
from g2l_plugin.metrics.plism import COSINE, RETRIEVAL
from g2l_plugin.metrics.probe import CALIBRATION, LOGISTIC
from g2l_plugin.metrics.robustness import PATHOROB, ROBUSTNESS

FAMILIES = (
    KNN,
    LOGISTIC,
    FEW_SHOT,
    CALIBRATION,
    EXPRESSION,
    ROBUSTNESS,
    PATHOROB,
    CROMA,
    PUBLISHED_PATHOROB,
    PERFORMANCE_DROP,
    CLUSTERING,
    COSINE,
    RETRIEVAL,
    CKA,
    BIASED_CKA,
)
"""All families, in the order of their tables."""


def family_of(metric: str) -> MetricFamily | None:
    """Family of a metric's name, e.g. `RobustnessIndex/k=5`; None for other names."""
    return next((family for family in FAMILIES if re.fullmatch(family.pattern, metric)), None)


def k_of(metric: str) -> int | None:
    """The k in a metric's name, e.g. its number of neighbours; None if the name has none."""
    family = family_of(metric)
    match = re.fullmatch(family.pattern, metric) if family else None
    return int(match["k"]) if match and "k" in match.groupdict() else None
