"""Tissue to tile table: where the tiles of each slide are, one parquet file a slide."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
from skimage import color, filters, morphology
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.slides import slide as slide_lib

_MASK_MPP = 8.0
"""Resolution of the tissue mask in microns per pixel: a cell is about one pixel."""

_MIN_SATURATION = 0.06
"""Below this HSV saturation a pixel is glass, whatever Otsu says of an all-tissue slide."""


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """What makes a tile: the part of the configuration that an index file depends on.

    Attributes:
        width: Tile width in pixels at `target_mpp`.
        height: Tile height in pixels at `target_mpp`.
        target_mpp: Microns per pixel of the tiles.
        overwrite_mpp: Microns per pixel of slides whose metadata has none.
        min_tissue: Least share of a tile's area that must be tissue, 0 to 1.
    """

    width: int = 256
    height: int = 256
    target_mpp: float = 0.5
    overwrite_mpp: float | None = None
    min_tissue: float = 0.5


@dataclasses.dataclass(frozen=True)
class SlideIndex:
    """The tiles of one slide.

    Attributes:
        path: The slide.
        plan: How its tiles are read.
        xy: Upper left corners in pixels of level 0, int32 (tiles, 2).
    """

    path: Path
    plan: slide_lib.ReadPlan
    xy: np.ndarray


def tissue_mask(slide: openslide.OpenSlide, mpp: float) -> np.ndarray:
    """Finds tissue by colour saturation at low resolution (Otsu's threshold, specks removed).

    Args:
        slide: The open slide.
        mpp: Microns per pixel of its level 0.

    Returns:
        Boolean mask (height, width) over the whole slide, at about 8 microns per pixel.
    """
    width, height = slide.dimensions
    scale = max(_MASK_MPP / mpp, 1.0)
    thumbnail = slide.get_thumbnail((max(int(width / scale), 1), max(int(height / scale), 1)))
    saturation = color.rgb2hsv(np.asarray(thumbnail.convert("RGB")))[..., 1]
    saturation = filters.gaussian(saturation, 1)
    if np.ptp(saturation) < 1e-3:  # one colour: Otsu has nothing to part
        threshold = _MIN_SATURATION
    else:
        threshold = max(min(filters.threshold_otsu(saturation), 0.12), _MIN_SATURATION)
    return morphology.opening(saturation > threshold, morphology.disk(1))


def index_slide(path: Path, grid: TileGrid) -> SlideIndex:
    """Lays the non-overlapping grid over a slide and keeps the tiles on tissue.

    Raises:
        UserError: The slide cannot be opened, or its resolution is unknown or too coarse.
    """
    with slide_lib.open_slide(path) as slide:
        mpp = slide_lib.slide_mpp(slide, path, grid.overwrite_mpp)
        plan = slide_lib.plan_reads(slide, path, mpp, grid.target_mpp, (grid.width, grid.height))
        try:
            mask = tissue_mask(slide, mpp)
        except openslide.OpenSlideError as error:
            raise UserError(
                f"OpenSlide cannot read {path} ({error}). The file is damaged: move it away."
            ) from error
        slide_size = slide.dimensions
    columns, rows = (slide_size[axis] // plan.level0_size[axis] for axis in (0, 1))
    x, y = np.meshgrid(
        np.arange(columns) * plan.level0_size[0], np.arange(rows) * plan.level0_size[1]
    )
    xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    share = _area_means(mask, xy, plan.level0_size, slide_size)
    return SlideIndex(path=path, plan=plan, xy=xy[share >= grid.min_tissue])


def build_index(
    paths: Sequence[Path], grid: TileGrid, index_dir: str | Path, workers: int | None = None
) -> list[SlideIndex]:
    """Indexes slides in parallel; what was indexed before with the same grid is read instead.

    Args:
        paths: The slides.
        grid: What makes a tile.
        index_dir: Folder for the parquet files, one a slide; an interrupted run goes on there.
        workers: Threads; None takes one per CPU core.

    Returns:
        The index of each slide, in the order of `paths`.

    Raises:
        UserError: A slide cannot be indexed. The others that were done by then stay done.
    """
    index_dir = Path(index_dir)
    index_dir.mkdir(parents=True, exist_ok=True)
    files = [index_dir / _index_name(path, grid) for path in paths]
    missing = [(path, file) for path, file in zip(paths, files, strict=True) if not file.is_file()]
    # Threads, not processes: the time goes to OpenSlide, called without the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = [pool.submit(_index_to_file, path, grid, file) for path, file in missing]
        done = concurrent.futures.as_completed(jobs)
        try:
            for job in tqdm(done, "Indexing slides", len(jobs), unit="slide", disable=not jobs):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [_read_index(path, file) for path, file in zip(paths, files, strict=True)]


def _index_to_file(path: Path, grid: TileGrid, file: Path) -> None:
    _write_index(index_slide(path, grid), file)


def _index_name(path: Path, grid: TileGrid) -> str:
    """Names an index file after all that it depends on, so that a stale one is never read."""
    stat = path.stat()
    key = json.dumps(
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns, dataclasses.asdict(grid)]
    )
    return f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.parquet"


def _write_index(index: SlideIndex, file: Path) -> None:
    table = pa.table({"x": index.xy[:, 0], "y": index.xy[:, 1]})
    table = table.replace_schema_metadata({"plan": json.dumps(dataclasses.asdict(index.plan))})
    partial = file.with_suffix(f".{os.getpid()}.part")
    pq.write_table(table, partial)
    partial.replace(file)


def _read_index(path: Path, file: Path) -> SlideIndex:
    table = pq.read_table(file)
    plan = json.loads(table.schema.metadata[b"plan"])
    return SlideIndex(
        path=path,
        plan=slide_lib.ReadPlan(
            plan["level"], tuple(plan["read_size"]), tuple(plan["level0_size"])
        ),
        xy=np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.int32),
    )


def _area_means(
    mask: np.ndarray, xy: np.ndarray, size: tuple[int, int], slide_size: tuple[int, int]
) -> np.ndarray:
    """Mean of a mask over each tile's area, by an integral image; float (tiles,)."""
    integral = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale = np.array([mask.shape[1] / slide_size[0], mask.shape[0] / slide_size[1]])
    limits = np.array([mask.shape[1], mask.shape[0]])
    start = np.minimum(np.floor(xy * scale).astype(int), limits - 1)
    stop = np.clip(np.ceil((xy + np.array(size)) * scale).astype(int), start + 1, limits)
    (x0, y0), (x1, y1) = start.T, stop.T
    total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return total / ((x1 - x0) * (y1 - y0))
