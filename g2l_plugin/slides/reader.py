"""Tiles from slides whose handles stay open."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide

from g2l_plugin.slides import slide as slide_lib

_CACHE_BYTES = 64 << 20
"""Decoded pixels that OpenSlide keeps for all slides of a process together (else 32 MiB each)."""


class SlideReader:
    """Reads tiles of many slides; each process keeps the slides it read last open.

    A process opens its own handles: those of a parent are left alone.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        plans: Sequence[slide_lib.ReadPlan],
        size: tuple[int, int],
        max_open_slides: int,
    ) -> None:
        """Initializes the reader; no slide is opened yet.

        Args:
            paths: The slides.
            plans: How the tiles of each are read.
            size: Width and height of the tiles.
            max_open_slides: Slides that each process keeps open.
        """
        self.paths = list(paths)
        self._plans = list(plans)
        self.n_opened = 0
        self._size = size
        self._max_open_slides = max_open_slides
        self._handles: OrderedDict[int, openslide.OpenSlide] = OrderedDict()
        self._cache: openslide.OpenSlideCache = None  # type: ignore[assignment]
        self._pid: int | None = None

    def read(self, number: int, x: int, y: int) -> np.ndarray:
        """Reads a tile.

        Args:
            number: Of the slide.
            x: Left edge, in pixels of level 0.
            y: Upper edge, in pixels of level 0.

        Returns:
            uint8 RGB (3, height, width).

        Raises:
            SlideError: The slide cannot be opened.
            openslide.OpenSlideError: It is damaged there.
        """
        try:
            slide = self._handle(number)
            return slide_lib.read_tile(slide, self._plans[number], x, y, self._size)
        except openslide.OpenSlideError:
            # OpenSlide refuses every later read through a handle that failed once.
            self._handles.pop(number).close()
            raise

    @property
    def n_open(self) -> int:
        """Slides that this process has open."""
        return len(self._handles) if self._pid == os.getpid() else 0

    def _handle(self, number: int) -> openslide.OpenSlide:
        if self._pid != os.getpid():
            self._handles, self._pid = OrderedDict(), os.getpid()
            self._cache = openslide.OpenSlideCache(_CACHE_BYTES)
        if number in self._handles:
            self._handles.move_to_end(number)
            return self._handles[number]
        handle = slide_lib.open_slide(self.paths[number])
        handle.set_cache(self._cache)
        self.n_opened += 1
        self._handles[number] = handle
        if len(self._handles) > self._max_open_slides:
            self._handles.popitem(last=False)[1].close()
        return handle

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": OrderedDict(), "_cache": None, "_pid": None}
