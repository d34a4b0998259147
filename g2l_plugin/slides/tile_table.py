"""The tile table of one slide: a parquet file with the slide's record in its metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from g2l_plugin.files import new_file
from g2l_plugin.slides.cohort import CohortSlide
from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.tiling import SlideRecord, TileGrid

_METADATA = b"g2l"


def file_stem(slide: CohortSlide) -> str:
    """Names a slide's files; slides of one name in two folders have two names."""
    digest = hashlib.sha256(slide.slide.encode()).hexdigest()[:8]
    return f"{PurePosixPath(slide.slide).stem[:80]}-{digest}"


def table_path(folder: Path, slide: CohortSlide) -> Path:
    """Says where an index keeps a slide's table."""
    return folder / "slides" / f"{file_stem(slide)}.parquet"


def write_table(
    folder: Path,
    slide: CohortSlide,
    grid: TileGrid,
    record: SlideRecord,
    tiles: dict[str, Any],
) -> None:
    """Writes a slide's table.

    Args:
        folder: Of the index.
        slide: The slide.
        grid: What made its tiles.
        record: What became of it.
        tiles: Columns x, y, tissue and sharpness; none for a slide that cannot be used.
    """
    types = {"x": pa.int32(), "y": pa.int32(), "tissue": pa.float32(), "sharpness": pa.float32()}
    table = pa.table({name: pa.array(tiles.get(name, []), kind) for name, kind in types.items()})
    metadata = {
        "slide": slide.slide,
        "grid": dataclasses.asdict(grid),
        "record": dataclasses.asdict(record),
    }
    table = table.replace_schema_metadata({_METADATA: json.dumps(metadata)})
    with new_file(table_path(folder, slide)) as partial:
        pq.write_table(table, partial)


def read_record(folder: Path, slide: CohortSlide, grid: TileGrid) -> SlideRecord | None:
    """The record of a slide that was indexed with this grid, or None."""
    try:
        metadata = pq.read_metadata(table_path(folder, slide)).metadata or {}
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:  # cut off by a full disk or a power cut
        logger.warning(f"{table_path(folder, slide)} is damaged and made anew ({error}).")
        return None
    if _METADATA not in metadata:
        return None
    written = json.loads(metadata[_METADATA])
    record = written["record"]
    expected = dataclasses.asdict(grid)
    if not record["mpp_by_hand"]:
        # It touches no other slide: giving it for three slides does not index a thousand anew.
        expected["overwrite_mpp"] = written["grid"]["overwrite_mpp"]
    if written["grid"] != expected:
        return None
    if (plan := record["plan"]) is not None:
        record["plan"] = ReadPlan(
            plan["level"], tuple(plan["read_size"]), tuple(plan["level0_size"])
        )
    return SlideRecord(**record)


def read_xy(folder: Path, slide: CohortSlide) -> np.ndarray:
    """Reads the upper left corners of a slide's tiles in pixels of level 0, int32 (tiles, 2)."""
    table = pq.read_table(table_path(folder, slide), columns=["x", "y"])
    return np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
