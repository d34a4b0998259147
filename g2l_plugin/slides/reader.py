"""Reading tiles from many slides, with the last handles kept open."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from g2l_plugin.slides import slide as slide_lib
from g2l_plugin.slides.tiff import DecodedTiles, TiffSlide

_CACHE_BYTES = 64 << 20
"""OpenSlide's cache of decoded pixels, shared by all slides of a process (default: 32 MiB each)."""


class SlideReader:
    """Reads tiles of many slides; each process keeps its most recently used slides open.

    A forked process opens its own handles and does not use its parent's.

    Attributes:
        paths: The slides.
        n_opened: How often this reader has opened a slide.
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
            plans: How to read the tiles of each slide.
            size: Width and height of the tiles.
            max_open_slides: Slides that each process keeps open.
        """
        self.paths = list(paths)
        self._plans = list(plans)
        self.n_opened = 0
        self._size = size
        self._max_open_slides = max_open_slides
        self._handles: OrderedDict[int, openslide.OpenSlide | TiffSlide] = OrderedDict()
        self._cache: openslide.OpenSlideCache | None = None
        self._decoded: DecodedTiles | None = None
        self._pid: int | None = None

    def read(self, slide: int, x: int, y: int, out: np.ndarray) -> None:
        """Reads a tile.

        Args:
            slide: Position of the slide in `paths`.
            x: Left edge, in pixels of level 0.
            y: Upper edge, in pixels of level 0.
            out: Where to write it, uint8 RGB (3, height, width).

        Raises:
            SlideError: The slide cannot be opened.
            openslide.OpenSlideError: The slide is damaged at this place.
        """
        try:
            handle = self._handle(slide)
            slide_lib.read_tile(handle, self._plans[slide], x, y, self._size, out)
        except openslide.OpenSlideError:
            # After one failure, OpenSlide refuses every later read through the same handle.
            self._handles.pop(slide).close()
            raise

    @property
    def n_open(self) -> int:
        """Slides that this process has open."""
        return len(self._handles) if self._pid == os.getpid() else 0

    def _handle(self, slide: int) -> openslide.OpenSlide | TiffSlide:
        if self._cache is None or self._pid != os.getpid():
            self._handles, self._pid = OrderedDict(), os.getpid()
            self._cache = openslide.OpenSlideCache(_CACHE_BYTES)
            self._decoded = DecodedTiles()
        if slide in self._handles:
            self._handles.move_to_end(slide)
            return self._handles[slide]
        handle = slide_lib.open_for(self.paths[slide], self._plans[slide], self._decoded)
        if isinstance(handle, openslide.OpenSlide):
            handle.set_cache(self._cache)
        self.n_opened += 1
        self._handles[slide] = handle
        if len(self._handles) > self._max_open_slides:
            self._handles.popitem(last=False)[1].close()
        return handle

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "_handles": OrderedDict(),
            "_cache": None,
            "_decoded": None,
            "_pid": None,
        }
        return self.__dict__ | fresh
