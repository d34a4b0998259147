"""What tasks and measures are called, and which measures stand together."""

from __future__ import annotations

import dataclasses
import re

_TASKS = {
    "aggc22": "AGGC22",
    "bach": "BACH",
    "bracs": "BRACS",
    "breakhis40x": "BreakHis 40x",
    "breakhis100x": "BreakHis 100x",
    "breakhis200x": "BreakHis 200x",
    "breakhis400x": "BreakHis 400x",
    "camelyon16": "CAMELYON16",
    "chimera": "CHIMERA",
    "consep": "CoNSeP",
    "crc": "CRC",
    "g2ldemo": "demo cohort",
    "gleasonarvaniti": "Gleason (Arvaniti)",
    "idc": "IDC",
    "mhist": "MHIST",
    "monusac": "MoNuSAC",
    "panda": "PANDA",
    "pandasmall": "PANDA (small)",
    "patchcamelyon": "PatchCamelyon",
    "tiger": "TIGER",
    "tils": "TILs",
    "tp53": "TP53",
}
_ALIASES = {
    "aggc": "aggc22",
    "demotiles": "g2ldemo",
    "gleason": "gleasonarvaniti",
    "pcam": "patchcamelyon",
}

_HEAD_METRICS = ("MulticlassAccuracy", "BinaryBalancedAccuracy", "MonaiDiceScore")
"""What eva's head is told by where its config does not say."""

_METRICS = {
    "BinaryBalancedAccuracy": "balanced accuracy",
    "MonaiDiceScore": "Dice",
    "MulticlassAccuracy": "balanced accuracy",
}
"""What eva's metrics are; its MulticlassAccuracy is the mean over classes."""

_MINOR = ("KNNBalancedAccuracy", "LogisticAccuracy", "LogisticBalancedAccuracy")
"""Measures that stand in report.csv only."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Measures that make one table: more of them is better.

    Attributes:
        key: Short name of the group.
        title: Title of the table.
        about: What it is, in a sentence or two.
        neutral: The figure of an encoder of no bias, where there is one.
    """

    key: str
    title: str
    about: str
    neutral: float | None = None


HEAD = Group(
    "head",
    "eva's head",
    "A head that eva trains on frozen embeddings: linear for tiles, attention for slides.",
)
KNN = Group("knn", "kNN accuracy", "The vote of the nearest training tiles; nothing is trained.")
LOGISTIC = Group(
    "logistic",
    "Logistic probe, AUROC",
    "Logistic regression on frozen embeddings; area under the ROC curve, one class against the "
    "rest.",
)
ROBUSTNESS = Group(
    "robustness",
    "Robustness index (de Jong et al.)",
    "Neighbours of the same class over neighbours of the same centre: above 1, biology outweighs "
    "the hospital (arXiv 2501.18055).",
    neutral=1.0,
)
PATHOROB = Group(
    "pathorob",
    "Robustness index (PathoROB)",
    "Among neighbours that share either class or centre, the share that has the class: above 0.5, "
    "biology outweighs the hospital (arXiv 2507.17845).",
    neutral=0.5,
)
CKA = Group(
    "cka",
    "CKA with the teacher",
    "Linear centred kernel alignment of the embeddings with the teacher's; 1 is the teacher itself "
    "and is not ranked.",
)

COSINE = Group(
    "cosine",
    "Likeness across scanners and stains",
    "Cosine similarity of tiles of the same place under two scanners or stains, the median over "
    "pairs of slides (arXiv 2501.16239). An encoder that gives all tiles the same embedding has 1: "
    "read it beside the retrieval.",
)
RETRIEVAL = Group(
    "retrieval",
    "Retrieval across scanners and stains",
    "How often the tile of the same place is among the nearest of another slide, the median over "
    "pairs of slides (arXiv 2501.16239).",
)

_OF_NAMES = {"KNNAccuracy": KNN, "LogisticAUROC": LOGISTIC, "LinearCKA": CKA}
_OF_FAMILIES = {
    "RobustnessIndex": ROBUSTNESS,
    "PathoROBIndex": PATHOROB,
    "CosineSimilarity": COSINE,
}
_TOP = re.compile(r"Top(\d+)Accuracy/(\w+)")
GROUPS = (HEAD, KNN, LOGISTIC, ROBUSTNESS, PATHOROB, COSINE, RETRIEVAL, CKA)
"""Groups in the order of their tables; those of other measures come after them."""


def task_key(name: str) -> str:
    """The same for all spellings of a task: `breakhis_40X` and `BreakHis 40x`."""
    key = re.sub(r"[^a-z0-9]", "", name.casefold())
    return _ALIASES.get(key, key)


def task_title(name: str) -> str:
    """What a task is called in a report."""
    return _TASKS.get(task_key(name), name)


def head_metric(metrics: dict[str, tuple[float, ...]], monitored: str | None) -> str | None:
    """The metric that tells eva's head; None where it has none of them."""
    candidates = (monitored, *_HEAD_METRICS)
    return next((name for name in candidates if name in metrics), None)


def is_known(measure: str) -> bool:
    """Whether it is a measure of this package: metrics of eva's heads are not."""
    family = measure.partition("/")[0]
    return measure in _OF_NAMES or family in _OF_FAMILIES or bool(_TOP.fullmatch(measure))


def group_of(measure: str) -> Group | None:
    """The group of a measure that is none of eva's head; None for one that has no table."""
    if measure in _MINOR or measure.endswith("Unbiased"):
        return None
    family = measure.partition("/")[0]
    if _TOP.fullmatch(measure):
        return RETRIEVAL
    return (
        _OF_NAMES.get(measure)
        or _OF_FAMILIES.get(family)
        or Group(family, family, "A measure that was added to the benchmark.")
    )


def k_of(measure: str) -> int | None:
    """The number of neighbours that a measure is taken at; None where its name has none."""
    if top := _TOP.fullmatch(measure):
        return int(top[1])
    at = measure.rpartition("/k=")[2]
    return int(at) if at.isdecimal() else None


def measure_detail(measure: str) -> str:
    """What of a measure stands in the head of its column: `k=20`, `balanced accuracy`."""
    if top := _TOP.fullmatch(measure):
        return f"{top[2]}, top {top[1]}"
    return measure.partition("/")[2] or _METRICS.get(measure, "")
