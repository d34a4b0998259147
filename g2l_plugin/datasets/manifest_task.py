"""A task of one's own: what its eva config takes from the manifest, `${g2l.manifest:FACT}`."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from g2l_plugin.datasets.manifest_table import check_table, read_table, sort_labels
from g2l_plugin.errors import UserError

_NAME = re.compile(r"\w[\w.@+-]*")
_COLUMNS = ("path", "label", "split", "patient", "slide", "centre")
_GENERIC = "manifest"
"""Name of the file that `g2l prepare` writes: its folder says more."""


@dataclasses.dataclass(frozen=True)
class ManifestTask:
    """The task that a manifest of tiles describes.

    As in eva's own configs, two classes are one output with binary cross entropy.

    Attributes:
        name: Name of the task, of its folders and in reports.
        root: Folder that the manifest's paths are relative to, an absolute path.
        file: The manifest, an absolute path.
        classes: The labels, sorted as `ManifestTiles` numbers them.
        n_centres: Number of centres; 0 if that of a tile is unknown.
        columns: Our column names to the manifest's, where they differ.
    """

    name: str
    root: str
    file: str
    classes: tuple[str, ...]
    n_centres: int
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether eva's head has one output."""
        return len(self.classes) == 2

    @property
    def n_outputs(self) -> int:
        """Outputs of eva's head."""
        return 1 if self.is_binary else len(self.classes)

    @property
    def criterion(self) -> str:
        """Class path of the head's loss."""
        return f"torch.nn.{'BCEWithLogitsLoss' if self.is_binary else 'CrossEntropyLoss'}"

    @property
    def monitor(self) -> str:
        """The metric that selects the head's checkpoint."""
        return "BinaryBalancedAccuracy" if self.is_binary else "MulticlassAccuracy"

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of eva's head, as a config names them."""
        if self.is_binary:
            return {"class_path": "eva.metrics.BinaryClassificationMetrics"}
        return {
            "class_path": "eva.metrics.MulticlassClassificationMetrics",
            "init_args": {"num_classes": self.n_outputs},
        }

    @property
    def metrics_on_all_splits(self) -> list[dict[str, Any]]:
        """The robustness index if there are centres to be robust to, as a config names it.

        Over all splits, because patients of a centre may all be in one.
        """
        return [{"class_path": "g2l_plugin.RobustnessIndex"}] if self.n_centres > 1 else []

    @property
    def target_dtype(self) -> str:
        """Type of the labels that the loss expects."""
        return "torch.float32" if self.is_binary else "torch.int64"


def read_task(
    file: str | Path,
    root: str | Path | None = None,
    name: str = "",
    columns: Mapping[str, str] | None = None,
) -> ManifestTask:
    """Reads which task a manifest describes.

    Args:
        file: The manifest, a CSV or parquet file. A relative path is relative to `root`.
        root: Folder that the manifest's paths are relative to; None is the manifest's own.
        name: Name of the task; "" is the manifest's, or its folder's if it is called `manifest`.
        columns: Our column names (path, label, split, patient, slide, centre) to the manifest's,
            where they differ.

    Raises:
        UserError: The manifest cannot be read, a tile has no label, there are fewer than two
            labels, the name cannot be a folder's, or a column is none of ours.
    """
    path = Path(os.path.abspath(file if root is None else Path(root) / file))
    own = path.parent.name if path.stem == _GENERIC else path.stem
    task_name = name or re.sub(r"[^\w.@+-]+", "_", own)
    if not _NAME.fullmatch(task_name):
        raise UserError(
            f"{path} is a task called {task_name!r}. Expected a name of letters, digits and _.@+-, "
            "because its folders are named after it. Set TASK_NAME."
        )
    columns = dict(columns or {})
    if unknown := columns.keys() - set(_COLUMNS):
        raise UserError(
            f"{', '.join(sorted(unknown))} is no column of a manifest of tiles (MANIFEST_COLUMNS, "
            f"--columns). Expected {', '.join(_COLUMNS)}."
        )
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    classes, n_centres = _read_content(path, changed, tuple(sorted(columns.items())))
    folder = os.path.abspath(path.parent if root is None else root)
    return ManifestTask(task_name, folder, str(path), classes, n_centres, columns)


def manifest_fact(fact: str, folder: str | Path = ".") -> Any:
    """What the manifest that the variables name says: `${g2l.manifest:FACT}`.

    They are MANIFEST_FILE and, if they are set, DATA_ROOT, TASK_NAME and MANIFEST_COLUMNS.

    Args:
        fact: An attribute of `ManifestTask`.
        folder: Folder that relative paths are relative to.

    Raises:
        UserError: MANIFEST_FILE is not set, MANIFEST_COLUMNS is no mapping, or see `read_task`.
    """
    file, root = os.environ.get("MANIFEST_FILE"), os.environ.get("DATA_ROOT")
    if not file:
        raise UserError(
            "MANIFEST_FILE is not set. Give the path of a manifest of tiles before the command: "
            "MANIFEST_FILE=tiles.csv eva predict_fit --config ..."
        )
    if root is None:
        file = str(Path(folder) / file)
    else:
        root = str(Path(folder) / root)
    columns = _parse(os.environ.get("MANIFEST_COLUMNS") or "{}")
    value = getattr(read_task(file, root, os.environ.get("TASK_NAME", ""), columns), fact)
    return list(value) if isinstance(value, tuple) else value


def _parse(columns: str) -> dict[str, str]:
    """Parses the variable MANIFEST_COLUMNS."""
    try:
        found = yaml.safe_load(columns)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"MANIFEST_COLUMNS is {columns!r}. Expected our column names and the manifest's, as "
            "'{label: diagnosis, path: image}'."
        )
    return {str(ours): str(theirs) for ours, theirs in found.items()}


@functools.lru_cache(maxsize=8)  # a config asks for ten facts, and eva reads it twice
def _read_content(
    path: Path, changed: int, columns: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, ...], int]:
    """Reads labels and number of centres; the modification time is part of the cache key."""
    names = {name: name for name in _COLUMNS} | dict(columns)
    table = read_table(path, names, ("path", "label"))
    check_table(table, path)
    classes = tuple(sort_labels(table["label"]))
    if len(classes) < 2:
        raise UserError(
            f"All tiles of {path} have the label {classes[0]!r}. Expected two labels or more."
        )
    centres = set(table["centre"]) if "centre" in table else {""}
    return classes, 0 if "" in centres else len(centres)
