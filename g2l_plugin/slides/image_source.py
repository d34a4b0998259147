"""Tiles cut from images that are no slides."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from loguru import logger
from PIL import Image
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.image_set import ImageSet
from g2l_plugin.slides.lost_tiles import LostTiles
from g2l_plugin.slides.slide import as_tile, check_not_too_coarse, same_scale
from g2l_plugin.slides.tile_source import Origins

_READERS = 16
"""Threads that wait for the disk while images are measured."""

_OTHER_TILES = 8
"""Random tiles to try in place of one that cannot be read."""

_MAX_BLOCK = 256
"""Largest number of neighbouring tiles that are read together."""

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for an image that is damaged, too large, or none."""


def measure_images(images: ImageSet) -> np.ndarray:
    """Reads the width and height of each image from its first bytes.

    Returns:
        int32 (images, 2) in pixels; 0 for an image that cannot be read.
    """

    def measure(number: int) -> tuple[int, int]:
        try:
            with images.open(number) as file, Image.open(file) as image:
                return image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            logger.warning(f"{images.table['name'][number]} cannot be read: {in_one_line(error)}.")
            return 0, 0

    with ThreadPoolExecutor(_READERS) as pool:
        sizes = np.zeros((len(images), 2), np.int32)
        numbers = tqdm(
            range(0, len(images), 1024), "Measuring images", unit="x1,024", dynamic_ncols=True
        )
        for start in numbers:  # in parts, or ten million waiting jobs would fill the memory
            part = range(start, min(start + 1024, len(images)))
            sizes[start : part.stop] = list(pool.map(measure, part))
    return sizes


def spread_evenly(n_images: int, at_most: int) -> list[int]:
    """Numbers of at most so many images, evenly spread over all.

    Examples:
        >>> from g2l_plugin.slides.image_source import spread_evenly
        >>> spread_evenly(10, 4), spread_evenly(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    n = min(at_most, n_images)
    return [place * n_images // n for place in range(n)]


class WholeImages:
    """Images as they are, each of its own size: uint8 RGB (3, height, width).

    Examples:
        >>> from PIL import Image
        >>> from g2l_plugin.slides.image_set import find_images
        >>> from g2l_plugin.slides.image_source import WholeImages
        >>> Image.new("RGB", (64, 48), "purple").save("tumour.png")
        >>> images = WholeImages(find_images("."))
        >>> len(images), images[0].shape
        (1, torch.Size([3, 48, 64]))
    """

    def __init__(self, images: ImageSet) -> None:
        """Initializes the images; none is opened."""
        self._images = images

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Reads an image.

        Raises:
            UserError: It cannot be read.
        """
        try:
            pixels = _read_rgb(self._images, number)
        except _UNREADABLE as error:
            raise UserError(
                f"Image {self._images.table['name'][number]} cannot be read "
                f"({in_one_line(error)}). Write it again or remove it."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class ImageTiles:
    """The tiles of images, on a grid in the middle of each (a `TileSource`).

    A tile that cannot be read counts as lost, and a random other one is read in its place.

    Attributes:
        block_tiles: Neighbouring tiles that are read together.
        xy: Upper left corner of each tile, in pixels of its image, int32 (tiles, 2).
        origins: The images.
    """

    def __init__(
        self,
        images: ImageSet,
        sizes: np.ndarray,
        tile_size: int,
        target_mpp: float,
        max_lost: float = 0.01,
    ) -> None:
        """Lays the grids; no image is opened.

        Args:
            images: The images, each of which has a resolution.
            sizes: Width and height of each image in pixels, from `measure_images`.
            tile_size: Width and height of the tiles, in pixels at the target resolution.
            target_mpp: Microns per pixel of the tiles.
            max_lost: Largest share of images, and of tiles, that may be unusable, 0 to 1.

        Raises:
            UserError: More images than that cannot be read or are smaller than a tile, or one is
                coarser than the target.
        """
        self._images = images
        self._tile_size = (tile_size, tile_size)
        self._max_lost = max_lost
        scale = _scales(images.table, target_mpp)  # (images,)
        side = np.rint(tile_size * scale).astype(np.int32)  # of a tile, in pixels of the image
        columns, rows = (sizes // side[:, None]).T  # (images,)
        _check_sizes(images, sizes, columns * rows, tile_size, target_mpp, max_lost)
        per_image = columns * rows
        self._side = side
        of_tile = np.repeat(np.arange(len(images), dtype=np.int32), per_image)
        start = np.cumsum(per_image) - per_image
        place = (np.arange(len(of_tile)) - start[of_tile]).astype(np.int32)  # within its image
        steps = np.stack([place % columns[of_tile], place // columns[of_tile]], axis=1)
        margin = (sizes - np.stack([columns, rows], axis=1) * side[:, None]) // 2  # (images, 2)
        self.xy = (margin[of_tile] + steps * side[of_tile, None]).astype(np.int32)
        patients = images.table["patient"].to_numpy(str)
        self.origins = Origins(
            "images",
            patients,
            patients != "",
            images.table["centre"].to_numpy(str),
            of_tile,
        )
        group_of_image = np.repeat(np.arange(len(images.group_sizes)), images.group_sizes)
        self._group_of_tile = group_of_image[of_tile]
        largest = int(per_image.max(initial=1))
        self.block_tiles = max(images.block_images, min(largest, _MAX_BLOCK))
        self._lost = LostTiles(len(self.xy), max_lost)
        self._held: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Tiles of all images."""
        return len(self.xy)

    @property
    def group_sizes(self) -> np.ndarray:
        """Tiles of each group of images that are cheap to read together, (groups,)."""
        return np.bincount(self._group_of_tile, minlength=len(self._images.group_sizes))

    def keep(self, numbers: np.ndarray) -> None:
        """Keeps only these tiles, ascending, and renumbers them from 0."""
        old = self.origins
        self.origins = dataclasses.replace(old, of_tile=old.of_tile[numbers])
        self.xy, self._group_of_tile = self.xy[numbers], self._group_of_tile[numbers]
        self._lost = LostTiles(len(numbers), self._max_lost)

    def read(self, number: int) -> torch.Tensor:
        """Reads a tile, or its substitute, uint8 RGB (3, height, width).

        Raises:
            UserError: More tiles are lost than `max_lost` allows, or no substitute can be read.
        """
        others = np.random.default_rng(number).integers(len(self), size=_OTHER_TILES).tolist()
        for candidate in (number, *others):
            if candidate in self._lost:
                continue
            image = int(self.origins.of_tile[candidate])
            try:
                pixels = self._pixels(image)
            except _UNREADABLE as error:
                self._lose(candidate, error)
                continue
            (x, y), side = self.xy[candidate].tolist(), int(self._side[image])
            return torch.from_numpy(as_tile(pixels[y : y + side, x : x + side], self._tile_size))
        raise UserError(
            f"Neither {self._images.table['name'][self.origins.of_tile[number]]} nor "
            f"{_OTHER_TILES} other images can be read. Bring them back, and run the command again."
        )

    def read_into(self, number: int, out: np.ndarray) -> None:
        """Reads a tile as `read` does, into memory: uint8 RGB (3, height, width)."""
        out[...] = self.read(number)

    def read_encoded(self, number: int) -> bytes | None:
        """Reads the file of an image that is a JPEG in RGB and one tile as it is; else None."""
        image = int(self.origins.of_tile[number])
        if number in self._lost or self._side[image] != self._tile_size[0]:
            return None
        try:
            with self._images.open(image) as file:
                data = file.read()
            with Image.open(io.BytesIO(data)) as opened:
                if (
                    opened.format != "JPEG"
                    or opened.mode != "RGB"
                    or opened.size != self._tile_size
                ):
                    return None
                opened.load()  # to the end: a file that is cut off is no tile
        except _UNREADABLE as error:
            self._lose(number, error)
            return None
        return data

    def substitutes(self, numbers: np.ndarray) -> np.ndarray:
        """Says which of these tiles were replaced by a substitute, bool (tiles,)."""
        return self._lost.flags(numbers)

    def lost(self) -> np.ndarray:
        """Numbers of the tiles that could not be read, ascending, int64."""
        return self._lost.numbers()

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists number, image (its name, as `slide`) and upper left corner of tiles."""
        names = self._images.table["name"].to_numpy()[self.origins.of_tile[numbers]]
        x, y = self.xy[numbers].T
        return pd.DataFrame({"tile": numbers, "slide": names, "x": x, "y": y})

    def describe(self) -> str:
        """Numbers of tiles and images, for the log."""
        return f"{len(self):,} tiles of {self.origins.count()['images']:,} images"

    def fingerprint(self) -> str:
        """SHA-256 of the images' names and the tiles' places; their folder does not change it."""
        digest = hashlib.sha256(
            "\n".join(self._images.table["name"]).encode(errors="surrogateescape")
        )
        for values in (self._side, self.origins.of_tile, self.xy):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def _pixels(self, image: int) -> np.ndarray:
        """Decodes an image, uint8 RGB (height, width, 3), and keeps it for its other tiles."""
        if self._held is None or self._held[0] != image:
            self._held = image, _read_rgb(self._images, image)
        return self._held[1]

    def _lose(self, number: int, error: Exception) -> None:
        name = self._images.table["name"][self.origins.of_tile[number]]
        message = f"{name} cannot be read: {in_one_line(error)}."
        logger.warning(f"{message} A substitute is read in its place.")
        self._lost.add(number, number + 1, message)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}


def _read_rgb(images: ImageSet, number: int) -> np.ndarray:
    """Decodes an image, uint8 RGB (height, width, 3)."""
    with images.open(number) as file, Image.open(file) as opened:
        return np.asarray(_to_rgb(opened))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, with white where it is transparent.

    Raises:
        ValueError: Its pixels have more than 8 bits.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"its pixels are {image.mode}, expected 8 bits in RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scales(table: pd.DataFrame, target_mpp: float) -> np.ndarray:
    """Pixels of each image per pixel of a tile, (images,)."""
    unknown = table["mpp"].isna().to_numpy()
    if unknown.any():
        raise UserError(
            f"The resolution of {unknown.sum():,} of {len(table):,} images is not known, e.g. of "
            f"{table['name'][int(unknown.argmax())]}. Give it: --mpp 0.5 (microns per pixel), or a "
            "column `mpp` in a manifest."
        )
    for mpp in table["mpp"].unique().tolist():
        name = table["name"][int((table["mpp"] == mpp).to_numpy().argmax())]
        check_not_too_coarse(f"Image {name}", mpp, target_mpp)
    scale = target_mpp / table["mpp"].to_numpy()
    return np.where(same_scale(scale), 1.0, scale)


def _check_sizes(
    images: ImageSet,
    sizes: np.ndarray,
    n_tiles: np.ndarray,
    tile_size: int,
    target_mpp: float,
    max_lost: float,
) -> None:
    """Raises an error if too many images give no tile."""
    unreadable, without = int((sizes == 0).all(axis=1).sum()), n_tiles == 0
    if without.sum() <= max_lost * len(images) and not without.all():
        if without.any():
            logger.warning(
                f"{without.sum():,} of {len(images):,} images give no tile: {unreadable:,} cannot "
                "be read, the others are smaller than a tile."
            )
        return
    small = without & (sizes > 0).all(axis=1)
    example = int((small if small.any() else without).argmax())
    width, height = sizes[example].tolist()
    raise UserError(
        f"{without.sum():,} of {len(images):,} images give no tile of {tile_size} px at "
        f"{target_mpp:g} microns per pixel ({unreadable:,} cannot be read), e.g. "
        f"{images.table['name'][example]} of {width}x{height} px at "
        f"{images.table['mpp'][example]:g}. Give their --tile-size and --mpp, or raise --max-lost."
    )
