"""A teacher's embeddings on disk: written by one run, read by all runs with the same views."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from g2l_plugin.errors import in_one_line
from g2l_plugin.files import flush_to_disk, new_file, write_text
from g2l_plugin.transfer import start_copy

_KEY_FILE = "key.json"
_NONE = -1


class TeacherCache:
    """Embeddings by tile and view, in a folder for one key.

    The folder `<root>/<hash of the key>` holds `key.json` and, for each view, parts in safetensors:
    tile numbers and their embeddings as the teacher gave them. Several processes may write at the
    same time, each its own parts; a part appears whole or not at all. Memory: 8 bytes per tile of
    each view that was read, and one part.

    Attributes:
        folder: The folder of the key.
    """

    def __init__(
        self, root: Path, key: Mapping[str, Any], n_tiles: int, rows_in_part: int = 8192
    ) -> None:
        """Opens the cache; creates the folder if there is none.

        Args:
            root: Folder of all caches.
            key: Everything that decides the embeddings, as JSON values.
            n_tiles: Number of tiles; they are numbered from 0.
            rows_in_part: Embeddings per part.
        """
        text = json.dumps(key, sort_keys=True, indent=2) + "\n"
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._n_tiles = n_tiles
        self._rows_in_part = rows_in_part
        self._parts: list[Any] = []
        self._known: set[Path] = set()
        self._places: dict[int, np.ndarray] = {}
        self._waiting: list[tuple[np.ndarray, int, Callable[[], torch.Tensor]]] = []
        self._writes = True
        try:
            write_text(self.folder / _KEY_FILE, text)
        except OSError as error:
            self._stop_writing(error)

    def refresh(self) -> None:
        """Finds parts that other processes have written."""
        for view in self._places:
            self._find_parts(view)

    def get(self, tiles: np.ndarray, view: int) -> tuple[np.ndarray, torch.Tensor | None]:
        """Reads the embeddings that are there.

        Args:
            tiles: Tile numbers, int64 (B,).
            view: Number of the view.

        Returns:
            Whether each tile is held, bool (B,), and the embeddings of the held ones, (held, D), on
            the host; None if there are none.
        """
        places = self._places_of(view)[:, tiles]  # (2, B)
        held = places[0] != _NONE
        if not held.any():
            return held, None
        rows = [self._parts[part][row : row + 1] for part, row in places[:, held].T.tolist()]
        return held, torch.cat(rows)

    def put(self, tiles: np.ndarray, view: int, embeddings: torch.Tensor) -> None:
        """Adds the embeddings of a batch; they are held once their part is written.

        Args:
            tiles: Tile numbers, int64 (B,).
            view: Number of the view.
            embeddings: (B, D), on any device. The host does not wait for them.
        """
        if self._writes and len(tiles):
            # Whole batches only: a run that was killed then computes a whole batch again. And not
            # with this batch: the device would be idle until its values arrive.
            if sum(len(tiles) for tiles, _, _ in self._waiting) >= self._rows_in_part:
                self.flush()
            self._waiting.append((tiles, view, start_copy(embeddings)))

    def flush(self) -> None:
        """Writes the embeddings that were added."""
        for view in sorted({view for _, view, _ in self._waiting}):
            batches = [(tiles, read()) for tiles, other, read in self._waiting if other == view]
            tiles, embeddings = zip(*batches, strict=True)
            try:
                self._write(view, np.concatenate(tiles), torch.cat(embeddings))
            except (OSError, SafetensorError) as error:
                self._stop_writing(error)
        self._waiting.clear()

    def _write(self, view: int, tiles: np.ndarray, embeddings: torch.Tensor) -> None:
        folder = self._view_folder(view)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"part-{uuid.uuid4().hex}.safetensors"
        with new_file(path) as partial:
            save_file({"tiles": torch.from_numpy(tiles), "embeddings": embeddings}, partial)
            flush_to_disk(partial)
        self._read(path, view)

    def _stop_writing(self, error: Exception) -> None:
        self._writes = False
        logger.warning(
            f"The teacher cache {self.folder} is no longer written: {in_one_line(error)}. The run "
            "continues and computes what the cache lacks."
        )

    def _places_of(self, view: int) -> np.ndarray:
        """Part and row of each tile, int32 (2, tiles)."""
        if view not in self._places:
            self._places[view] = np.full((2, self._n_tiles), _NONE, np.int32)
            self._find_parts(view)
        return self._places[view]

    def _find_parts(self, view: int) -> None:
        for path in sorted(self._view_folder(view).glob("part-*.safetensors")):
            if path not in self._known:
                self._read(path, view)

    def _read(self, path: Path, view: int) -> None:
        self._known.add(path)
        try:
            part = safe_open(path, "pt")
            tiles = part.get_tensor("tiles").numpy()
        except (OSError, SafetensorError) as error:
            logger.warning(f"{path} is damaged ({in_one_line(error)}) and skipped.")
            return
        places = self._places_of(view)
        places[0, tiles], places[1, tiles] = len(self._parts), np.arange(len(tiles))
        self._parts.append(part.get_slice("embeddings"))

    def _view_folder(self, view: int) -> Path:
        return self.folder / f"view-{view:04d}"
