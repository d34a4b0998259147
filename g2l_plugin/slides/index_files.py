"""The files of one slide in an index: its thumbnail, and its tile table with its record.

The tile table is a parquet file. The slide's record and the grid are JSON in the file's metadata.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from g2l_plugin.files import new_file
from g2l_plugin.slides.cohort import CohortSlide
from g2l_plugin.slides.slide import ReadPlan, SlideError, open_slide
from g2l_plugin.slides.tile_grid import SlideRecord, TileGrid

_METADATA = b"g2l"


def table_path(folder: Path, slide: CohortSlide) -> Path:
    """Returns the path of a slide's tile table in an index."""
    return folder / "slides" / f"{_file_stem(slide)}.parquet"


def thumbnail_path(folder: Path, slide: CohortSlide) -> Path:
    """Returns the path of a slide's thumbnail in an index."""
    return folder / "thumbnails" / f"{_file_stem(slide)}.jpg"


def remove_partial_files(folder: Path, slide: CohortSlide) -> None:
    """Removes the unfinished files of a slide, which a killed process leaves behind."""
    for path in (table_path(folder, slide), thumbnail_path(folder, slide)):
        for partial in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            partial.unlink(missing_ok=True)


def write_table(
    folder: Path,
    slide: CohortSlide,
    grid: TileGrid,
    record: SlideRecord,
    tiles: dict[str, Any],
) -> None:
    """Writes a slide's tile table.

    Args:
        folder: The folder of the index.
        slide: The slide.
        grid: The grid that its tiles lie on.
        record: The slide's record.
        tiles: Columns x, y, tissue and sharpness; empty for a slide that cannot be used.
    """
    types = {"x": pa.int32(), "y": pa.int32(), "tissue": pa.float32(), "sharpness": pa.float32()}
    table = pa.table({name: pa.array(tiles.get(name, []), kind) for name, kind in types.items()})
    metadata = {
        "slide": slide.slide,
        "mpp": slide.mpp,
        "grid": dataclasses.asdict(grid),
        "record": dataclasses.asdict(record),
    }
    table = table.replace_schema_metadata({_METADATA: json.dumps(metadata)})
    with new_file(table_path(folder, slide)) as partial:
        pq.write_table(table, partial)


def read_record(folder: Path, slide: CohortSlide, grid: TileGrid) -> SlideRecord | None:
    """Reads the record of a slide, or returns None if it is not indexed with this grid and mpp."""
    try:
        metadata = pq.read_metadata(table_path(folder, slide)).metadata or {}
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:  # truncated by a full disk or a power cut
        logger.warning(f"{table_path(folder, slide)} is damaged and made again ({error}).")
        return None
    if _METADATA not in metadata:
        return None
    written = json.loads(metadata[_METADATA])
    record = written["record"]
    expected = dataclasses.asdict(grid)
    if not record["mpp_overwritten"]:
        # `overwrite_mpp` changes no other slide: setting it for three does not reindex a thousand.
        expected["overwrite_mpp"] = written["grid"]["overwrite_mpp"]
    written["grid"].setdefault("reader", "auto")  # before there was a choice
    if grid.reader == "openslide":  # where it reads all, nothing has to be proven
        expected["reader"] = written["grid"]["reader"]
    if written["grid"] != expected or written.get("mpp") != slide.mpp:
        return None
    if (plan := record["plan"]) is not None:
        sizes = {name: tuple(value) for name, value in plan.items() if isinstance(value, list)}
        record["plan"] = ReadPlan(**plan | sizes)
        if grid.reader == "openslide":
            record["plan"] = dataclasses.replace(record["plan"], page=None)
    return SlideRecord(**record)


def read_current_record(
    folder: Path, root: Path, slide: CohortSlide, grid: TileGrid
) -> SlideRecord | None:
    """Reads the record of a slide, or returns None if its file is gone or has changed.

    A file has changed if its `file_state` has.
    """
    record = read_record(folder, slide, grid)
    try:
        state = file_state(root / slide.slide)
    except OSError:
        return None
    return record if record is not None and (record.bytes, record.modified) == state else None


def file_state(path: Path) -> tuple[int, int]:
    """Returns size and modification time of a slide's file, by which a change is noticed.

    The levels of a DICOM slide are files of one folder: the folder's time counts too, as its level
    0 may arrive last.

    Raises:
        OSError: There is no such file, or the system withholds it.
    """
    stat = path.stat()
    modified = stat.st_mtime_ns
    if path.suffix.lower() == ".dcm":
        modified = max(modified, path.parent.stat().st_mtime_ns)
    return stat.st_size, modified


def read_moved_record(
    folder: Path, root: Path, slide: CohortSlide, grid: TileGrid
) -> SlideRecord | None:
    """Reads the record of a slide that was copied, or returns None if its content has changed.

    A copy has another modification time, but the same sizes and OpenSlide hash. That hash covers
    little of a slide: where some of it was unreadable, the copy may be a repaired one.
    """
    record = read_record(folder, slide, grid)
    path = root / slide.slide
    if record is None or not (record.is_final and record.quickhash):
        return None
    if record.bytes != path.stat().st_size:
        return None
    try:
        with open_slide(path) as handle:
            same = handle.properties.get(openslide.PROPERTY_NAME_QUICKHASH1) == record.quickhash
            same &= handle.dimensions == (record.width, record.height)  # no finer level has come
    except SlideError:
        return None
    return record if same else None


def read_tiles(folder: Path, slide: CohortSlide) -> dict[str, Any]:
    """Reads all columns of a slide's tile table."""
    return dict(pq.read_table(table_path(folder, slide)).to_pydict())


def read_xy(folder: Path, slide: CohortSlide) -> np.ndarray:
    """Reads the upper left corners of a slide's tiles in pixels of level 0, int32 (tiles, 2)."""
    table = pq.read_table(table_path(folder, slide), columns=["x", "y"])
    return np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)


def _file_stem(slide: CohortSlide) -> str:
    """Names a slide's files, differently for slides of the same name in two folders."""
    digest = hashlib.sha256(os.fsencode(slide.slide)).hexdigest()[:8]
    # A file name may have 255 bytes, and a character up to 4 of them.
    stem = os.fsencode(PurePosixPath(slide.slide).stem)[:80].decode("utf-8", "ignore")
    return f"{stem}-{digest}"
