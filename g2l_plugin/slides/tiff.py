"""Regions of a slide from the compressed tiles of its TIFF file, without OpenSlide.

OpenSlide composes regions in ARGB through Cairo, and decodes at full size what downsampling then
throws away. Here a JPEG tile is decoded at 1/2, 1/4 or 1/8 of its size if no more is wanted, which
makes only those pixels (JPEG 2000 likewise, by its resolution levels), and neighbours share decoded
tiles. Whether this gives a slide's pixels is for `proof` to say.

JPEG is decoded by libjpeg-turbo through simplejpeg: one half of the time that Pillow needs, and as
fast as imagecodecs, which cannot decode at a smaller size. JPEG 2000 is decoded by OpenJPEG: at
full size through imagecodecs, in two thirds of the time that Pillow needs; smaller sizes, and
Aperio's YCbCr, through Pillow.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import simplejpeg
import tifffile
from PIL import Image

_JPEG, _APERIO_J2K_YCBCR, _APERIO_J2K_RGB, _J2K = 7, 33003, 33005, 34712
_RGB, _YCBCR = 2, 6
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""An Adobe marker without its last byte: 0 for RGB, 1 for YCbCr. libjpeg guesses without one."""

_CACHE_BYTES = 8 << 20
"""Decoded pixels that a process keeps: those that the tiles of a block share. More is slower, as
memory that was used last is still in the processor's cache."""


class Unsupported(Exception):
    """A TIFF whose tiles are not read here; the message says why."""


class DecodedTiles:
    """The decoded tiles that were used last, up to a number of bytes."""

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        """Initializes the cache."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def get(self, key: tuple, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the tile of a key, decoded if it is not there."""
        if (tile := self._tiles.get(key)) is not None:
            self._tiles.move_to_end(key)
            return tile
        tile = self._tiles[key] = decode()
        self._bytes += tile.nbytes
        while self._bytes > self._max_bytes and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile


class TiffSlide:
    """A TIFF file whose tiles are decoded here."""

    def __init__(self, path: str | Path, cache: DecodedTiles | None = None) -> None:
        """Opens the file.

        Args:
            path: The file.
            cache: The cache to use, which slides of a process may share.

        Raises:
            OSError: The system does not give the file.
        """
        self.path = str(path)
        self._cache = cache or DecodedTiles()
        self._pages: dict[int, _Page] = {}
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> TiffSlide:
        """Returns the slide."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def __del__(self) -> None:
        """Closes the file of a slide that nobody uses."""
        if hasattr(self, "_file"):
            self.close()

    def find_page(self, size: tuple[int, int]) -> int:
        """Finds the tiled image of a level.

        Args:
            size: Width and height of the level in pixels.

        Returns:
            Its number in the file, for `read`.

        Raises:
            Unsupported: There is no such image, or its tiles are not read here.
        """
        with self._open_tiff() as tiff:
            for number, page in enumerate(tiff.pages):
                if (page.imagewidth, page.imagelength) == size and page.is_tiled:
                    self._pages[number] = _Page(page)
                    return number
        raise Unsupported("no tiled image in the file has the size of the level")

    def has_holes(self, page: int) -> bool:
        """Whether the file leaves out some of a level's tiles."""
        return bool((self._page(page).counts == 0).any())

    def tile_size(self, page: int) -> tuple[int, int]:
        """Width and height of a level's tiles."""
        return self._page(page).tile_size

    def is_jpeg2000(self, page: int) -> bool:
        """Whether a level's tiles are JPEG 2000: reduced, they lie up to half a pixel off."""
        return self._page(page).compression != _JPEG

    def read(
        self, page: int, corner: tuple[int, int], size: tuple[int, int], reduction: int = 1
    ) -> np.ndarray:
        """Reads a region of a level, reduced if the layout of its tiles allows it.

        Args:
            page: Number of the level's image in the file.
            corner: Left and upper edge in pixels of the level.
            size: Width and height in pixels of the level.
            reduction: Factor by which the region may be smaller: 1, 2, 4 or 8.

        Returns:
            uint8 RGB (height / r, width / r, 3) with r = `reduction`, or a smaller power of two if
            tiles, corner or size are no multiples of it; white where the level has no pixels.

        Raises:
            openslide.OpenSlideError: The slide is damaged there, or the system does not give it.
        """
        level = self._page(page)
        (x, y), (width, height) = corner, size
        while any(length % reduction for length in (*corner, *size, *level.tile_size)):
            reduction //= 2
        tile_w, tile_h = (length // reduction for length in level.tile_size)
        x, y, width, height = (length // reduction for length in (x, y, width, height))
        # Beyond the edge of the level, its last tiles have arbitrary pixels.
        right, bottom = (-(-length // reduction) for length in level.size)
        region = np.full((height, width, 3), 255, np.uint8)
        for row in range(max(y, 0) // tile_h, -(-min(y + height, bottom) // tile_h)):
            top, end = max(row * tile_h, y), min((row + 1) * tile_h, y + height, bottom)
            for column in range(max(x, 0) // tile_w, -(-min(x + width, right) // tile_w)):
                number = row * level.columns + column
                if not level.counts[number]:
                    continue
                left = max(column * tile_w, x)
                stop = min((column + 1) * tile_w, x + width, right)
                if end - top == tile_h and stop - left == tile_w:
                    tile = self._decode(level, number, reduction)  # no neighbour needs it
                else:
                    tile = self._cache.get(
                        (self.path, page, number, reduction),
                        lambda: self._decode(level, number, reduction),  # noqa: B023 (at once)
                    )
                region[top - y : end - y, left - x : stop - x] = tile[
                    top - row * tile_h : end - row * tile_h,
                    left - column * tile_w : stop - column * tile_w,
                ]
        return region

    def _decode(self, level: _Page, number: int, reduction: int) -> np.ndarray:
        """Decodes a tile, uint8 (tile height / reduction, tile width / reduction, 3)."""
        offset, count = int(level.offsets[number]), int(level.counts[number])
        try:
            compressed = os.pread(self._file, count, offset)
        except OSError as error:
            raise openslide.OpenSlideError(f"tile {number}: {error.strerror}") from error
        if len(compressed) < count:
            raise openslide.OpenSlideError(f"tile {number} lies beyond the end of the file")
        width, height = (length // reduction for length in level.tile_size)
        try:
            tile = level.decode(compressed, width, height, reduction)
        except Exception as error:  # damaged bytes raise any error in the decoders
            raise openslide.OpenSlideError(f"tile {number} cannot be decoded: {error}") from error
        if tile.shape != (height, width, 3) or tile.dtype != np.uint8:
            raise openslide.OpenSlideError(f"tile {number} is {tile.dtype} {tile.shape}")
        return tile

    def _page(self, number: int) -> _Page:
        if number not in self._pages:
            try:
                with self._open_tiff() as tiff:
                    self._pages[number] = _Page(tiff.pages[number])
            except Exception as error:  # a malformed file raises any error where it is parsed
                raise openslide.OpenSlideError(f"image {number} of the file: {error}") from error
        return self._pages[number]

    def _open_tiff(self) -> tifffile.TiffFile:
        try:
            return tifffile.TiffFile(self.path)
        except tifffile.TiffFileError as error:
            raise Unsupported(f"not a TIFF file ({error})") from error


class _Page:
    """One tiled image of a TIFF file.

    Attributes:
        size: Width and height in pixels.
        tile_size: Width and height of a tile.
        columns: Tiles in a row.
        offsets: Where the tiles are in the file, uint64 (tiles,).
        counts: Their bytes, uint64 (tiles,); 0 for a tile that is left out.
        compression: TIFF's number of their compression.
    """

    def __init__(self, page: tifffile.TiffPage) -> None:
        tags = page.tags
        if not page.is_tiled:
            raise Unsupported("it is not tiled")
        if page.samplesperpixel != 3 or page.bitspersample != 8 or page.planarconfig != 1:
            raise Unsupported("its pixels are not RGB of 8 bits")
        self.size = page.imagewidth, page.imagelength
        self.tile_size = page.tilewidth, page.tilelength
        self.columns = -(-page.imagewidth // page.tilewidth)
        rows = -(-page.imagelength // page.tilelength)
        self.offsets = np.array(page.dataoffsets, np.uint64)
        self.counts = np.array(page.databytecounts, np.uint64)
        if not len(self.offsets) == len(self.counts) == self.columns * rows:
            raise Unsupported("its table of tiles is incomplete")
        self.compression = int(page.compression)
        photometric = int(page.photometric)
        if self.compression == _JPEG and photometric in (_RGB, _YCBCR):
            tables = tags["JPEGTables"].value[2:-2] if "JPEGTables" in tags else b""
            self._prefix = b"\xff\xd8" + _ADOBE + bytes([photometric == _YCBCR]) + tables
        elif self.compression not in (_APERIO_J2K_YCBCR, _APERIO_J2K_RGB, _J2K):
            name = getattr(page.compression, "name", page.compression)
            raise Unsupported(f"its tiles are compressed by {name}")

    def decode(self, compressed: bytes, width: int, height: int, reduction: int) -> np.ndarray:
        """Decodes a tile to a size, uint8 RGB (height, width, 3)."""
        if self.compression == _JPEG:
            if compressed[:2] != b"\xff\xd8":
                raise ValueError("it is no JPEG")
            stream = self._prefix + compressed[2:]
            return simplejpeg.decode_jpeg(stream, min_height=height, min_width=width)
        with Image.open(io.BytesIO(compressed), formats=("JPEG2000",)) as image:
            if (image.width, image.height) != (width * reduction, height * reduction):
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            if reduction == 1 and self.compression != _APERIO_J2K_YCBCR:
                return imagecodecs.jpeg2k_decode(compressed)
            image.reduce = reduction.bit_length() - 1
            pixels = np.asarray(image)
        if self.compression == _APERIO_J2K_YCBCR:
            pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        return pixels
