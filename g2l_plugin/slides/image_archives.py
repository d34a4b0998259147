"""Images that are kept many in a file: members of tar files, rows of parquet files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line


class TarImages:
    """Images in tar files that are not compressed, as webdataset writes them.

    Attributes:
        names: Name of each image: its path in the tar.
        group_sizes: Images of each tar, int (tars,).
    """

    def __init__(self, paths: Sequence[Path], suffixes: Sequence[str]) -> None:
        """Lists the members; no image is read.

        Args:
            paths: The tar files.
            suffixes: File name endings of images, in lower case.

        Raises:
            UserError: A file is damaged, or is no tar or a compressed one.
        """
        self._paths = list(paths)
        self.names: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, path in enumerate(
            tqdm(paths, desc="Listing tar files", unit="file", dynamic_ncols=True)
        ):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isfile() and member.name.lower().endswith(tuple(suffixes)):
                            self.names.append(member.name)
                            places.append((number, member.offset_data, member.size))
            except tarfile.TarError as error:
                raise UserError(
                    f"{path} cannot be read ({in_one_line(error)}). Expected a tar file without "
                    "compression; check that it is complete."
                ) from error
        self._places = np.array(places, np.int64).reshape(-1, 3)  # tar, offset, bytes
        self.group_sizes = np.bincount(self._places[:, 0], minlength=len(self._paths))

    def __call__(self, number: int) -> BinaryIO:
        """Reads an image."""
        tar, offset, size = self._places[number].tolist()
        with self._paths[tar].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


def holds_images(path: Path) -> bool:
    """Says whether a parquet file has a column `image` of encoded images (and not of paths).

    Raises:
        pyarrow.ArrowException: It is no parquet file.
    """
    schema = pq.read_schema(path)
    kind = schema.field("image").type if "image" in schema.names else pa.null()
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class ParquetImages:
    """Images in parquet files, as datasets of the Hub are kept.

    The column `image` is their bytes, or a struct of `bytes` and `path`.

    Attributes:
        names: Name of each image: its `path`, or the file and row.
        columns: The other columns that were asked for, as far as every file has them.
        group_sizes: Images of each row group, int (row groups,).
    """

    def __init__(self, paths: Sequence[Path], columns: Sequence[str]) -> None:
        """Reads the tables; no image is read.

        Args:
            paths: The parquet files, for which `holds_images` is true.
            columns: Names of columns to read if they are there.
        """
        self.names: list[str] = []
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        tables: list[pd.DataFrame] = []
        for path in tqdm(paths, desc="Listing parquet files", unit="file", dynamic_ncols=True):
            file = pq.ParquetFile(path)
            image = file.schema_arrow.field("image").type
            has_path = pa.types.is_struct(image) and any(field.name == "path" for field in image)
            there = [name for name in columns if name in file.schema_arrow.names]
            table = file.read([*there, *(["image.path"] if has_path else [])])
            inner = table["image"].combine_chunks().field("path").to_pylist() if has_path else []
            self.names += [
                name or f"{PurePosixPath(path).name}:{row}"
                for row, name in enumerate(inner or [None] * file.metadata.num_rows)
            ]
            tables.append(table.select(there).to_pandas())
            for group in range(file.num_row_groups):
                self._groups.append((path, group))
                sizes.append(file.metadata.row_group(group).num_rows)
        self.columns: dict[str, Any] = {
            name: pd.concat([table[name] for table in tables], ignore_index=True)
            for name in columns
            if all(name in table for table in tables)
        }
        self.group_sizes = np.array(sizes, np.int64)
        self._ends = np.cumsum(self.group_sizes)
        self._held: tuple[int, pa.ChunkedArray] | None = None

    def __call__(self, number: int) -> BinaryIO:
        """Reads an image, and keeps the row group that it is in."""
        group = int(np.searchsorted(self._ends, number, side="right"))
        if self._held is None or self._held[0] != group:
            path, place = self._groups[group]
            try:
                column = pq.ParquetFile(path).read_row_group(place, ["image"])["image"]
            except pa.ArrowException as error:
                raise OSError(f"{path}: {in_one_line(error)}") from error
            self._held = group, column
        row = number - int(self._ends[group] - self.group_sizes[group])
        value = self._held[1][row].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise OSError(f"row {row} of {self._groups[group][0]} has no bytes")
        return io.BytesIO(data)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}
