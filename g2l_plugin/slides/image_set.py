"""Images that are no slides: files in a folder or of a manifest, members of tars, rows of parquets.

Each set is a list of named images that can be opened one by one, in the way that its format allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.image_archives import ParquetImages, TarImages, holds_images
from g2l_plugin.slides.patients import clean_patient

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""File name endings of images, in lower case."""

_PATH_COLUMNS = ("path", "image", "image_path", "file", "file_name", "filename")
"""Columns of a manifest that may name the image; the first there is read."""

_COLUMNS = {
    "patient": ("patient", "patient_id", "case_id"),
    "centre": ("centre", "center"),
    "mpp": ("mpp",),
}
"""What is read besides the image, and the columns that may have it."""

_BLOCK_IMAGES = 16
"""Neighbouring images that are read together: files of a folder, members of a tar."""

_EXPECTED = (
    "an index of slides, a folder of images, a manifest (CSV or parquet with a column `path`), a "
    "tar file of images (webdataset), a parquet file with a column `image` (datasets of the Hub), "
    "or a folder of such files"
)


class OpenImage(Protocol):
    """Opens the encoded images of a set by their number."""

    def __call__(self, number: int) -> BinaryIO:
        """Opens the file of an image, or a copy of it in memory.

        Raises:
            OSError: It cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, in an order in which neighbours are cheap to read together.

    Attributes:
        table: One row per image: `name`, `patient` and `centre` ("" if unknown), and `mpp`, microns
            per pixel (NaN if unknown).
        open: Opens an image.
        group_sizes: Images of each file, or part of a file, that holds several, int (groups,).
        block_images: Neighbouring images that are read together.
    """

    table: pd.DataFrame
    open: OpenImage
    group_sizes: np.ndarray
    block_images: int = _BLOCK_IMAGES

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)


def find_images(source: str | Path) -> ImageSet:
    """Finds the images of a source, whatever kind it is.

    Args:
        source: A folder of images, with subfolders; a manifest: a CSV or parquet file with a column
            `path` (relative to the manifest's folder) and, if known, `patient`, `centre` and `mpp`;
            a tar file of images, as webdataset writes; a parquet file with a column `image` of
            encoded images, as datasets of the Hub have; or a folder of tar or parquet files.

    Raises:
        UserError: It is none of these, or holds no images.
    """
    path = Path(source).expanduser()
    try:
        images = _open(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({in_one_line(error)}). Expected {_EXPECTED}."
        ) from error
    if images is None or not len(images):
        raise UserError(f"{path} holds no images. Expected {_EXPECTED}.")
    return images


def _open(path: Path) -> ImageSet | None:
    if path.is_dir():
        if tars := sorted(path.rglob("*.tar")):
            return _of_tars(tars)
        parquets = [file for file in sorted(path.rglob("*.parquet")) if holds_images(file)]
        return _of_parquets(parquets) if parquets else _of_folder(path)
    if path.suffix == ".tar":
        return _of_tars([path])
    if path.suffix == ".parquet":
        if holds_images(path):
            return _of_parquets([path])
        return _of_manifest(pq.read_table(path).to_pandas(), path)
    if path.suffix in (".csv", ".tsv", ".txt"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=None, engine="python")
        return _of_manifest(table, path)
    if not path.exists():
        raise UserError(f"{path} does not exist. Expected {_EXPECTED}.")
    return None


def _of_folder(folder: Path) -> ImageSet:
    files = tqdm(folder.rglob("*"), desc="Finding images", unit="file", dynamic_ncols=True)
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in files
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    return ImageSet(_described(found, {}, str(folder)), _Files(folder, found), _one_group(found))


def _of_manifest(manifest: pd.DataFrame, path: Path) -> ImageSet:
    columns = {str(name).strip().lower(): manifest[name] for name in reversed(manifest.columns)}
    named = next((columns[name] for name in _PATH_COLUMNS if name in columns), None)
    if named is None:
        raise UserError(
            f"Manifest {path} has the columns {', '.join(map(str, manifest.columns))}, none of "
            "which names the image. Expected a column `path`."
        )
    names = named.fillna("").astype(str).str.strip().tolist()
    if "" in names:
        raise UserError(
            f"Row {names.index('') + 1} of manifest {path} names no image. Fill in its column "
            f"{named.name!r}, or remove it."
        )
    return ImageSet(
        _described(names, columns, f"manifest {path}"),
        _Files(path.parent, names),
        _one_group(names),
    )


def _of_tars(paths: list[Path]) -> ImageSet:
    images = TarImages(paths, IMAGE_SUFFIXES)
    return ImageSet(_described(images.names, {}, str(paths[0])), images, images.group_sizes)


def _of_parquets(paths: list[Path]) -> ImageSet:
    images = ParquetImages(paths, [name for names in _COLUMNS.values() for name in names])
    # All of a group at once: a row cannot be read without its group.
    block = int(images.group_sizes.max(initial=1))
    described = _described(images.names, images.columns, str(paths[0]))
    return ImageSet(described, images, images.group_sizes, block)


def _one_group(names: list[str]) -> np.ndarray:
    return np.array([len(names)])


def _described(names: list[str], columns: Mapping[str, Any], source: str) -> pd.DataFrame:
    """The table of images from their names and the columns that a source has."""
    found = {
        ours: next((columns[name] for name in theirs if name in columns), None)
        for ours, theirs in _COLUMNS.items()
    }
    table = pd.DataFrame({"name": names})
    for ours in ("patient", "centre"):
        column = found[ours]
        texts = pd.Series("" if column is None else column, table.index).fillna("").astype(str)
        table[ours] = texts.map({text: clean_patient(text) for text in texts.unique()})
    mpp = found["mpp"]
    values = pd.Series(np.nan if mpp is None else mpp, table.index).replace("", np.nan)
    table["mpp"] = pd.to_numeric(values, errors="coerce")
    wrong = (table["mpp"].isna() & values.notna()) | (table["mpp"] <= 0)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(
            f"Row {row + 1} of {source} has {values[row]!r} in its column `mpp`. Expected microns "
            "per pixel, as 0.5, or nothing."
        )
    return table


class _Files:
    """Images that are files."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._names = names

    def __call__(self, number: int) -> BinaryIO:
        return (self._folder / self._names[number]).open("rb")
