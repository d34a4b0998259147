"""Tiles that one manifest lists: path, label, split, and whose they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from eva.vision.data.datasets.vision import VisionDataset
from eva.vision.utils.io import read_image_as_tensor
from torchvision import tv_tensors
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.manifest_table import (
    SPLITS,
    check_files,
    check_table,
    read_table,
    sort_labels,
)

_REQUIRED = ("path", "label")
_GROUPS = ("patient", "slide", "centre")
"""Metadata that every tile has, if only as ""."""


class ManifestTiles(VisionDataset[tv_tensors.Image, torch.Tensor]):
    """Labelled tiles from a manifest, CSV or parquet, such as `g2l prepare` writes.

    A row a tile: `path` relative to the root, `label`, `split` (train, val or test), and where
    known `patient`, `slide` and `centre`. These and all other columns are the tile's metadata, as
    text.

    The manifest is checked as a whole, before anything is embedded: files that are missing, tiles
    listed twice, labels that are in one split only and patients that are in two are errors.
    """

    default_column_mapping: ClassVar[dict[str, str]] = {
        name: name for name in (*_REQUIRED, "split", *_GROUPS)
    }

    def __init__(
        self,
        root: str,
        manifest_file: str = "manifest.csv",
        split: Literal["train", "val", "test"] | None = None,
        column_mapping: dict[str, str] = default_column_mapping,
        transforms: Callable | None = None,
    ) -> None:
        """Initializes the dataset; nothing is read yet.

        Args:
            root: Folder that the paths in the manifest are relative to.
            manifest_file: The manifest, relative to `root`, or an absolute path.
            split: Which rows to take; None takes all.
            column_mapping: The manifest's names of the columns, where they are others.
            transforms: Applied to tile and target, as in eva's datasets.
        """
        super().__init__(transforms=transforms)
        self._root = root
        self._manifest_path = Path(root) / manifest_file
        self._split = split
        self._column_mapping = self.default_column_mapping | column_mapping
        self._table: pd.DataFrame | None = None
        self._classes: list[str] = []
        self._paths: list[str] = []
        self._targets = np.empty(0, np.int64)
        self._metadata: dict[str, list[str]] = {}

    @property
    @override
    def classes(self) -> list[str]:
        """The labels of the whole manifest, sorted: they are the same in every split."""
        if not self._classes:
            self.configure()
        return self._classes

    @property
    @override
    def class_to_idx(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.classes)}

    @override
    def prepare_data(self) -> None:
        self._table = self._load()
        check_files(Path(self._root), self._rows(self._table)["path"])

    @override
    def configure(self) -> None:
        table = self._load() if self._table is None else self._table
        self._table = None
        self._classes = sort_labels(table["label"])
        rows = self._rows(table)
        self._paths = rows["path"].tolist()
        self._targets = pd.Index(self._classes).get_indexer(pd.Index(rows["label"]))
        others = rows.columns.difference([*_REQUIRED, "split"])
        self._metadata = {name: [""] * len(rows) for name in _GROUPS}
        self._metadata |= {str(name): rows[name].tolist() for name in others}

    @override
    def filename(self, index: int) -> str:
        return self._paths[index]

    @override
    def load_data(self, index: int) -> tv_tensors.Image:
        return read_image_as_tensor(os.path.join(self._root, self._paths[index]))

    @override
    def load_target(self, index: int) -> torch.Tensor:
        return torch.tensor(self._targets[index], dtype=torch.long)

    @override
    def load_metadata(self, index: int) -> dict[str, str]:
        return {name: values[index] for name, values in self._metadata.items()}

    @override
    def __len__(self) -> int:
        return len(self._paths)

    def _load(self) -> pd.DataFrame:
        required = _REQUIRED if self._split is None else (*_REQUIRED, "split")
        table = read_table(self._manifest_path, self._column_mapping, required)
        check_table(table, self._manifest_path)
        return table

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        if self._split is None:
            return table
        rows = table[table["split"] == self._split]
        if rows.empty:
            there = ", ".join(split for split in SPLITS if (table["split"] == split).any())
            raise UserError(
                f"{self._manifest_path} has no rows of the split {self._split!r}: it has {there}."
            )
        return rows
