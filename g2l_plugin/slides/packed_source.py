"""Tiles read from the shards that `pack_tiles` wrote, on a disk or in an object store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from g2l_plugin.errors import UserError


class PackedTiles:
    """The tiles of one split of a pack (a `TileSource`).

    Attributes:
        root: Folder or address of the shards.
        group_sizes: Tiles of each shard, int (shards,).
    """

    def __init__(self, packed_root: str, split: str) -> None:
        """Opens the shards.

        Args:
            packed_root: Folder that `pack_tiles` wrote, or the address of its copy in an object
                store that LitData can read (`s3://bucket/tiles`).
            split: "train" or "val".

        Raises:
            UserError: There are no shards, or they do not hold encoded bytes.
        """
        litdata = import_litdata()
        self.root = f"{packed_root.rstrip('/')}/{split}"
        try:
            # No batch decoding: tiles of a shard are read one by one, in random order.
            self._shards = litdata.StreamingDataset(self.root, batch_decode=0)
            text = (Path(self._shards.input_dir.path) / "index.json").read_text()
            index = json.loads(text)
        except Exception as error:  # every store has its own errors
            raise UserError(
                f"There are no packed tiles in {self.root} ({error}). Write them: g2l pack INDEX "
                f"{packed_root}"
            ) from error
        # LitData decodes whatever format the index names, and pickle is one of them.
        if index["config"]["data_format"] != ["bytes"]:
            raise UserError(
                f"{self.root} holds {index['config']['data_format']}, expected ['bytes']. Write "
                "the tiles again with g2l pack."
            )
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.group_sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]])

    def __len__(self) -> int:
        """Tiles of all shards."""
        return int(self.group_sizes.sum())

    def read(self, number: int) -> torch.Tensor:
        """Reads a tile, uint8 RGB (3, height, width)."""
        data = torch.frombuffer(bytearray(self._shards[number]), dtype=torch.uint8)
        return decode_jpeg(data, mode=ImageReadMode.RGB)

    def substitutes(self, numbers: np.ndarray) -> np.ndarray:
        """Says which of these tiles were replaced: none, as `pack_tiles` wrote substitutes."""
        return np.zeros(len(numbers), bool)

    def lost(self) -> np.ndarray:
        """Numbers of the lost tiles: none."""
        return np.empty(0, np.int64)

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists the numbers alone: a pack does not record slides and places."""
        return pd.DataFrame({"tile": numbers})

    def describe(self) -> str:
        """Numbers of tiles and shards, for the log."""
        return f"{len(self):,} tiles of {len(self.group_sizes):,} shards in {self.root}"

    def fingerprint(self) -> str:
        """SHA-256 of the index of the shards; the place of the shards does not change it."""
        return self._fingerprint


def import_litdata() -> Any:
    """Imports LitData, an optional extra.

    Raises:
        UserError: It is not installed.
    """
    try:
        import litdata
    except ImportError as error:
        raise UserError(
            "Packed tiles need LitData. Install it: pip install 'g2l-plugin[packed]'"
        ) from error
    return litdata
