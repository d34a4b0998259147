"""What a session's config.yaml says of it: task, model and metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from g2l_plugin.errors import UserError, in_one_line

CONFIG = "config.yaml"
"""Name of the file in which eva keeps the config of a session."""

_TRAINING = ("DistillationModule", "SupervisedPretraining")
_OF_ANY_TASK = (
    "EmbeddingsClassificationDataset",
    "MultiEmbeddingsClassificationDataset",
    "ManifestTiles",
    "WsiClassificationDataset",
)
_STUDENT = "g2l/student"


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """What a config says of a session.

    Attributes:
        task: Name of the task; None where it cannot be told.
        model: What the model is called; None where it cannot be told.
        metric: The metric that chooses the checkpoint, e.g. `MulticlassAccuracy`; None where there
            is none, or less of it is better.
        is_training: Whether the session trained an encoder and evaluated none.
    """

    task: str | None = None
    model: str | None = None
    metric: str | None = None
    is_training: bool = False


def read_config(path: Path) -> SessionConfig:
    """Reads a config as eva saves it, with its variables resolved.

    Args:
        path: The file; where there is none, nothing is known.

    Raises:
        UserError: It is no YAML, or no config.
    """
    if not path.is_file():
        return SessionConfig()
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as YAML ({in_one_line(error)}). Leave the session out, or give "
            "the config that it ran with its place."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not one of eva's configs: expected trainer, model and data.")
    measures = next(_nodes(config, "EmbeddingMeasures"), {})
    return SessionConfig(
        task=measures.get("task") or _task(config),
        model=measures.get("model_label") or _model(config),
        metric=_metric(config),
        is_training=_class_name(config.get("model")) in _TRAINING,
    )


def _nodes(value: Any, class_name: str) -> Iterator[dict[str, Any]]:
    """Yields the arguments of every object of a class."""
    if isinstance(value, dict):
        if _class_name(value) == class_name:
            yield value.get("init_args") or {}
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item, class_name)


def _class_name(value: Any) -> str:
    named = isinstance(value, dict) and "class_path" in value
    return str(value["class_path"]).rpartition(".")[2] if named else ""


def _arguments(value: Any, *names: str) -> Any:
    """Follows names through `init_args`; None where one is missing."""
    for name in names:
        value = (value.get("init_args") or {}).get(name) if isinstance(value, dict) else None
    return value


def _task(config: dict[str, Any]) -> str | None:
    datasets = _arguments(config.get("data"), "datasets")
    for split in ("predict", "train"):
        found = datasets.get(split) if isinstance(datasets, dict) else None
        dataset = found[0] if isinstance(found, list) and found else found
        name = _class_name(dataset)
        if name == "BreakHis":  # eva takes one magnification where none is named
            magnifications = _arguments(dataset, "magnifications") or ["40X"]
            return "breakhis_" + "_".join(map(str, magnifications))
        if name and name not in _OF_ANY_TASK:
            return name
    # eva's own configs end the path of the logs with the task.
    root = _arguments(config.get("trainer"), "default_root_dir")
    return Path(str(root)).name if root else None


def _model(config: dict[str, Any]) -> str | None:
    for part in (_arguments(config.get("trainer"), "callbacks"), config.get("model")):
        for arguments in _nodes(part, "ModelFromRegistry"):
            given = arguments.get("model_extra_kwargs")
            # eva writes what came from the environment as text.
            given = yaml.safe_load(given) if isinstance(given, str) else given
            if arguments.get("model_name") == _STUDENT:
                return (given or {}).get("source")
            return arguments.get("model_name")
        for name in ("TimmModel", "HuggingFaceModel", "TorchHubModel"):
            for arguments in _nodes(part, name):
                return arguments.get("model_name") or arguments.get("model_name_or_path")
    return None


def _metric(config: dict[str, Any]) -> str | None:
    checkpoint = next(_nodes(config.get("trainer"), "ModelCheckpoint"), {})
    monitored = checkpoint.get("monitor")
    if not monitored or checkpoint.get("mode") != "max":
        return None
    return str(monitored).partition("/")[2] or None
