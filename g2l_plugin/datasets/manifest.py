"""Labelled tiles listed in a manifest: path, label, split, patient, slide and centre."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np
import pandas as pd
import torch
from eva.vision.data.datasets.vision import VisionDataset
from eva.vision.utils.io import read_image_as_tensor
from loguru import logger
from torchvision import tv_tensors
from typing_extensions import override

from g2l_plugin.datasets.manifest_table import (
    SPLITS,
    check_files,
    check_table,
    read_table,
    sort_labels,
)
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError, in_one_line

_REQUIRED = ("path", "label")
_GROUPS = ("patient", "slide", "centre")
"""Metadata of every tile; "" if the manifest does not give it."""


class ManifestTiles(VisionDataset[tv_tensors.Image, torch.Tensor]):
    """Labelled tiles from a manifest, a CSV or parquet file such as `g2l prepare` writes.

    The manifest has one row per tile: `path` relative to the root, `label`, `split` (train, val or
    test) and, if known, `patient`, `slide` and `centre`. These three and all further columns are
    the tile's metadata, as text. An item is (tile, target, metadata).

    The whole manifest is checked before anything is embedded. Missing files, tiles listed twice,
    labels in only one split and patients in two splits are errors.

    Examples:
        >>> import pandas as pd
        >>> from PIL import Image
        >>> Image.new("RGB", (64, 64), "purple").save("tumour.png")
        >>> Image.new("RGB", (64, 64), "pink").save("normal.png")
        >>> table = pd.DataFrame(
        ...     {
        ...         "path": ["tumour.png", "normal.png"],
        ...         "label": ["tumour", "normal"],
        ...         "centre": ["north", "south"],
        ...     }
        ... )
        >>> table.to_csv("manifest.csv", index=False)
        >>> tiles = ManifestTiles(root=".", manifest_file="manifest.csv")
        >>> tiles.prepare_data()
        >>> tiles.setup()
        >>> tiles.classes
        ['normal', 'tumour']
        >>> tile, target, metadata = tiles[0]
        >>> tile.shape, target, metadata["centre"]
        (torch.Size([3, 64, 64]), tensor(1), 'north')
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
        draw_splits: bool = False,
    ) -> None:
        """Initializes the dataset without reading any file.

        Args:
            root: Folder that the manifest's paths are relative to.
            manifest_file: Path of the manifest, absolute or relative to `root`.
            split: Split to read; None reads all rows.
            column_mapping: Our column names to those of the manifest, if they differ.
            transforms: Transforms of tile and target, as in eva's datasets.
            draw_splits: Whether splits are drawn if the manifest has no column `split`: by patient,
                as `g2l prepare` does for a task without official ones.
        """
        super().__init__(transforms=transforms)
        self._root = root
        self._manifest_path = Path(root) / manifest_file
        self._split = split
        self._draw_splits = draw_splits
        self._column_mapping = self.default_column_mapping | column_mapping
        self._table: pd.DataFrame | None = None
        self._classes: list[str] = []
        self._paths: list[str] = []
        self._targets = np.empty(0, np.int64)
        self._metadata: dict[str, list[str]] = {}

    @property
    @override
    def classes(self) -> list[str]:
        """Sorted labels of the whole manifest, the same for every split."""
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
        columns = rows.columns.difference([*_REQUIRED, "split"])
        self._metadata = {name: [""] * len(rows) for name in _GROUPS}
        self._metadata |= {str(name): rows[name].tolist() for name in columns}

    @override
    def filename(self, index: int) -> str:
        return self._paths[index]

    @override
    def load_data(self, index: int) -> tv_tensors.Image:
        path = os.path.join(self._root, self._paths[index])
        try:
            return read_image_as_tensor(path)
        except (OSError, ValueError, cv2.error) as error:
            raise UserError(
                f"Tile {path} cannot be read ({in_one_line(error)}). Write it again, or remove its "
                f"row from {self._manifest_path}."
            ) from error

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
        needs_split = self._split is not None and not self._draw_splits
        required = (*_REQUIRED, "split") if needs_split else _REQUIRED
        table = read_table(self._manifest_path, self._column_mapping, required)
        check_table(table, self._manifest_path)
        if self._draw_splits and "split" not in table:
            table["split"] = self._draw(table)
        return table

    def _draw(self, table: pd.DataFrame) -> np.ndarray:
        """Splits of the rows, the same in every dataset of the manifest."""
        if "patient" not in table:
            raise UserError(
                f"Manifest {self._manifest_path} has neither a column split nor a column patient. "
                "Give each tile its split (train, val or test), or its patient: splits are then "
                "drawn that keep each patient in one."
            )
        splits = split_patients(table["label"], table["patient"])
        counts = ", ".join(f"{(splits == split).sum():,} {split}" for split in SPLITS)
        logger.info(f"{self._manifest_path} has no splits: drawn by patient, {counts} tiles.")
        return splits

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        if self._split is None:
            return table
        rows = table[table["split"] == self._split]
        if rows.empty:
            known = ", ".join(split for split in SPLITS if (table["split"] == split).any())
            raise UserError(
                f"{self._manifest_path} has no rows of the split {self._split!r}. It has {known}. "
                "Give some patients this split."
            )
        return rows
