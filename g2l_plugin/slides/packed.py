"""Tiles that `pack` wrote into shards, from a disk or an object store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from g2l_plugin.errors import UserError


class PackedTiles:
    """The tiles of a pack, by their number.

    Attributes:
        group_sizes: Tiles of each shard, int (shards,).
    """

    def __init__(self, packed_root: str, split: str) -> None:
        """Opens the shards.

        Args:
            packed_root: What `pack_tiles` wrote: a folder, or its copy in an object store by the
                name that LitData gives it (`s3://bucket/tiles`).
            split: "train" or "val".

        Raises:
            UserError: There are no shards, or they do not hold JPEG files.
        """
        litdata = import_litdata()
        self.root = f"{packed_root.rstrip('/')}/{split}"
        try:
            # A file at a time: tiles of a shard are read in an order of chance.
            self._shards = litdata.StreamingDataset(self.root, batch_decode=0)
            text = (Path(self._shards.input_dir.path) / "index.json").read_text()
            index = json.loads(text)
        except Exception as error:  # as many kinds as there are stores
            raise UserError(
                f"There are no packed tiles in {self.root} ({error}). Write them: g2l pack INDEX "
                f"{packed_root}"
            ) from error
        # LitData decodes what the index names, and one of its formats is pickle.
        if index["config"]["data_format"] != ["bytes"]:
            raise UserError(
                f"{self.root} holds {index['config']['data_format']}, expected ['bytes'], which "
                "g2l pack writes."
            )
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.group_sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]])

    def __len__(self) -> int:
        """Tiles of all shards."""
        return int(self.group_sizes.sum())

    def read(self, index: int) -> torch.Tensor:
        """Reads a tile, uint8 RGB (3, height, width)."""
        data = torch.frombuffer(bytearray(self._shards[index]), dtype=torch.uint8)
        return decode_jpeg(data, mode=ImageReadMode.RGB)

    def stands_in(self, tiles: np.ndarray) -> np.ndarray:
        """For which of some tiles others were read: for none."""
        return np.zeros(len(tiles), bool)

    def describe(self) -> str:
        """Says how many tiles there are, of what."""
        return f"{len(self):,} tiles of {len(self.group_sizes):,} shards in {self.root}"

    def fingerprint(self) -> str:
        """SHA-256 of the index of the shards, wherever they lie."""
        return self._fingerprint


def import_litdata() -> Any:
    """Imports LitData, which is an extra.

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
