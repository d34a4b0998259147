"""What a session's config.yaml says: its task, its model and the metric that it monitors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from g2l_plugin.errors import UserError, in_one_line

CONFIG = "config.yaml"
"""Name of the file in which eva saves the config of a session."""

_TRAINING_MODULES = ("DistillationModule", "SupervisedPretraining")
_GENERIC_DATASETS = (
    "EmbeddingsClassificationDataset",
    "MultiEmbeddingsClassificationDataset",
    "ManifestTiles",
    "WsiClassificationDataset",
)
"""Datasets that several tasks use: their class does not identify the task."""

_STUDENT = "g2l/student"

_TASK_TITLES = {
    "aggc22": "AGGC22",
    "bach": "BACH",
    "bcss": "BCSS",
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
    "hestidc": "HEST IDC",
    "hestprad": "HEST PRAD",
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
_TASK_ALIASES = {
    "aggc": "aggc22",
    "demotiles": "g2ldemo",
    "gleason": "gleasonarvaniti",
    "pcam": "patchcamelyon",
}


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """What a config says about its session.

    Attributes:
        task: Name of the task; None if unknown.
        model: Name of the model; None if unknown.
        monitor: The metric that selects the checkpoint, e.g. `MulticlassAccuracy`; None if there is
            none, or if lower values of it are better.
        is_training: Whether the session trained an encoder instead of evaluating one.
    """

    task: str | None = None
    model: str | None = None
    monitor: str | None = None
    is_training: bool = False


def read_config(path: Path) -> SessionConfig:
    """Reads a config as eva saves it, with its variables resolved.

    Args:
        path: The file. If it does not exist, nothing is known about the session.

    Raises:
        UserError: The file is not valid YAML, or not a config.
    """
    if not path.is_file():
        return SessionConfig()
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as YAML ({in_one_line(error)}). Restore the config of this "
            "session, or leave the session out."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not an eva config: expected trainer, model and data.")
    metrics = next(_find_arguments(config, "EmbeddingMetrics"), {})
    return SessionConfig(
        task=metrics.get("task") or _task(config),
        model=metrics.get("model_label") or _model(config),
        monitor=_monitor(config),
        is_training=_class_name(config.get("model")) in _TRAINING_MODULES,
    )


def task_key(name: str) -> str:
    """A key that all spellings of a task share: `breakhis_40X` and `BreakHis 40x`."""
    key = re.sub(r"[^a-z0-9]", "", name.casefold())
    return _TASK_ALIASES.get(key, key)


def task_title(name: str) -> str:
    """Name of a task in the report."""
    return _TASK_TITLES.get(task_key(name), name)


def _find_arguments(value: Any, class_name: str) -> Iterator[dict[str, Any]]:
    """Yields `init_args` of every object of a class, at any depth."""
    if isinstance(value, dict):
        if _class_name(value) == class_name:
            yield value.get("init_args") or {}
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _find_arguments(item, class_name)


def _class_name(value: Any) -> str:
    has_class = isinstance(value, dict) and "class_path" in value
    return str(value["class_path"]).rpartition(".")[2] if has_class else ""


def _argument(value: Any, name: str) -> Any:
    """An entry of an object's `init_args`; None if it is missing."""
    return (value.get("init_args") or {}).get(name) if isinstance(value, dict) else None


def _task(config: dict[str, Any]) -> str | None:
    datasets = _argument(config.get("data"), "datasets")
    for split in ("predict", "train"):
        found = datasets.get(split) if isinstance(datasets, dict) else None
        dataset = found[0] if isinstance(found, list) and found else found
        name = _class_name(dataset)
        if name == "BreakHis":  # eva defaults to 40X
            magnifications = _argument(dataset, "magnifications") or ["40X"]
            return "breakhis_" + "_".join(map(str, magnifications))
        if name and name not in _GENERIC_DATASETS:
            return name
    # In eva's own configs, the last part of the log folder is the task.
    root = _argument(config.get("trainer"), "default_root_dir")
    return Path(str(root)).name if root else None


def _model(config: dict[str, Any]) -> str | None:
    for part in (_argument(config.get("trainer"), "callbacks"), config.get("model")):
        for arguments in _find_arguments(part, "ModelFromRegistry"):
            if arguments.get("model_name") != _STUDENT:
                return arguments.get("model_name")
            kwargs = arguments.get("model_extra_kwargs")
            # eva saves values from environment variables as text.
            kwargs = yaml.safe_load(kwargs) if isinstance(kwargs, str) else kwargs
            return (kwargs or {}).get("source")
        for name in ("TimmModel", "HuggingFaceModel", "TorchHubModel"):
            for arguments in _find_arguments(part, name):
                return arguments.get("model_name") or arguments.get("model_name_or_path")
    return None


def _monitor(config: dict[str, Any]) -> str | None:
    checkpoint = next(_find_arguments(config.get("trainer"), "ModelCheckpoint"), {})
    if not checkpoint.get("monitor") or checkpoint.get("mode") != "max":
        return None
    return str(checkpoint["monitor"]).partition("/")[2] or None
