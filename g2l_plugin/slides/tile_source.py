"""The interface between a dataset and the place where its tiles are stored."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch

from g2l_plugin.slides.patients import find_barcode


@dataclasses.dataclass(frozen=True)
class Origins:
    """The slides, or the images, that tiles are from.

    Attributes:
        kind: What they are.
        patients: The patient of each; its own name or "" if the patient is unknown, (origins,).
        known: Whether the patient is known, bool (origins,).
        centres: The centre of each, "" if unknown, (origins,).
        of_tile: Position of each tile's origin in these, int32 (tiles,).
    """

    kind: Literal["slides", "images"]
    patients: np.ndarray
    known: np.ndarray
    centres: np.ndarray
    of_tile: np.ndarray

    def count(self) -> dict[str, Any]:
        """Counts the origins that have tiles, in all (by their kind) and per centre (`centres`)."""
        has_tiles = self._have_tiles()
        centres = Counter(centre or "unknown" for centre in self.centres[has_tiles].tolist())
        return {self.kind: int(has_tiles.sum()), "centres": dict(sorted(centres.items()))}

    def known_patients(self) -> set[str]:
        """The patients who have tiles, and "" if one is unknown.

        A name with a TCGA barcode tells its patient.
        """
        has_tiles = self._have_tiles()
        others = pd.unique(self.patients[has_tiles & ~self.known]).tolist()
        return {
            *pd.unique(self.patients[has_tiles & self.known]).tolist(),
            *(find_barcode(name) for name in others),
        }

    def _have_tiles(self) -> np.ndarray:
        """Which have tiles, bool (origins,)."""
        return np.bincount(self.of_tile, minlength=len(self.patients)) > 0


class TileSource(Protocol):
    """Numbered tiles, all of one size, from slides, images or a pack.

    Tiles that are cheap to read together have neighbouring numbers and form a group: a square of a
    slide, or a shard of a pack.
    """

    @property
    def group_sizes(self) -> np.ndarray:
        """Tiles of each group, in the order of their numbers, int (groups,)."""

    @property
    def origins(self) -> Origins:
        """The slides or images that the tiles are from."""

    def __len__(self) -> int:
        """Number of tiles."""

    def read(self, number: int) -> torch.Tensor:
        """Reads a tile, or its substitute if it is unreadable, uint8 RGB (3, height, width)."""

    def read_into(self, number: int, out: np.ndarray) -> None:
        """Reads it into memory, uint8 RGB (3, height, width)."""

    def substitutes(self, numbers: np.ndarray) -> np.ndarray:
        """Says which of these tiles were replaced by a substitute, bool (len(numbers),)."""

    def lost(self) -> np.ndarray:
        """Numbers of the tiles that could not be read in any process, ascending, int64."""

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists where tiles are.

        Returns:
            One row per tile with its number (`tile`) and, for tiles of slides, the slide's path
            (`slide`) and the upper left corner in pixels of level 0 (`x`, `y`).
        """

    def describe(self) -> str:
        """Describes the tiles in a few words, for the log."""

    def fingerprint(self) -> str:
        """SHA-256 that identifies the tiles and their numbering, independent of their folder."""
