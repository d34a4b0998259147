"""Cuts tiles from annotated images, each labelled with the class that covers it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from loguru import logger
from PIL import Image
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.files import new_folder
from g2l_plugin.parallel.failures import WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs

_RECORD = "tiles.json"
"""File next to a region's tiles with their labels, the rules and the file sizes they came from."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules for choosing tiles.

    Attributes:
        size: Side of a tile, in pixels.
        min_purity: Smallest share of a tile that its class must cover, 0 to 1.
        max_tiles: Largest number of tiles per class and region, chosen at random; None keeps all.
        seed: Seed of that choice.
        stride: Pixels from a tile to the next; None leaves no overlap. It divides the size.
        classes: Name of the set of classes, where a dataset has several.
    """

    size: int = 256
    min_purity: float = 0.75
    max_tiles: int | None = None
    seed: int = 0
    stride: int | None = None
    classes: str = ""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.min_purity <= 1:
            raise UserError(
                f"The tile size is {self.size} and the purity {self.min_purity:g}. Expected a size "
                "of 1 or more, and a purity above 0 and up to 1 (--size, --min-purity)."
            )
        if self.stride is not None and (self.stride < 1 or self.size % self.stride):
            raise UserError(
                f"The stride is {self.stride} and the tile size {self.size}. Expected a stride "
                "that divides the size, e.g. half of it (--stride, --size)."
            )


@dataclasses.dataclass(frozen=True)
class Region:
    """A slide, or a part of one, with its annotations.

    Attributes:
        name: Unique name, also of the folder of its tiles.
        image: The image file.
        masks: Mask file of each label, or one label mask under "".
        facts: Further columns of its tiles in the manifest: patient, slide, centre.
    """

    name: str
    image: Path
    masks: dict[str, Path]
    facts: dict[str, str]


Tile = tuple[int, int, str, np.ndarray]
"""Left and top edge in pixels of the region, label, and pixels, uint8 (size, size, 3)."""

Reader = Callable[[Region, Rules], Iterator[Tile]]
"""Reads the tiles of a region; raises `UserError` if it cannot be read."""


def cut_regions(
    read: Reader,
    regions: Sequence[Region],
    rules: Rules,
    output: Path,
    workers: int | None = None,
    max_lost: float = 0.05,
) -> pd.DataFrame:
    """Cuts the tiles of all regions into `output/tiles`, several regions at a time.

    Regions already cut by the same rules are not cut again. Unreadable regions are left out, with
    a warning.

    Args:
        read: Reads the tiles of a region; a module-level function, because it is pickled.
        regions: The regions.
        rules: Rules for choosing tiles.
        output: Folder of the future manifest, the root of its paths.
        workers: Number of processes; None uses one per CPU core.
        max_lost: Largest share of regions that may be left out.

    Returns:
        One row per tile: path relative to `output`, label, and the region's facts.

    Raises:
        UserError: Too many regions cannot be read, or no tile follows the rules.
    """
    # Removed first, because an old manifest may list tiles that no longer exist.
    (output / "manifest.csv").unlink(missing_ok=True)
    jobs = [(read, region, rules, output / "tiles") for region in regions]
    rows: dict[str, list[dict[str, str]]] = {}
    problems: dict[str, str] = {}
    bar = tqdm(desc="Cutting tiles", total=len(jobs), unit="region")
    with bar, contextlib.closing(run_jobs(_cut_region, jobs, workers)) as results:
        for (_, region, _, _), result in results:
            if isinstance(result, list):
                rows[region.name] = result
            elif isinstance(result, WorkerCrash):
                problems[region.name] = f"{region.image}: the process reading it died"
            else:
                problems[region.name] = result
            bar.update()
    _report(problems, len(regions), max_lost)
    table = pd.DataFrame([row for region in regions for row in rows.get(region.name, [])])
    if table.empty:
        raise UserError(
            f"In no tile of {rules.size} x {rules.size} pixels does one class cover a share of "
            f"{rules.min_purity:g}. Lower the tile size or the purity (--size, --min-purity)."
        )
    return table


def count_pixels(
    marked: np.ndarray, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray
) -> None:
    """Adds the marked pixels of a part of a mask to the counts of the tiles.

    Args:
        marked: The part, bool (H, W).
        rows: Tile row of each row of pixels, ascending (H,).
        columns: Tile column of each column of pixels, ascending (W,).
        counts: Count of each tile, int (rows, columns); changed in place.
    """
    row_starts = np.flatnonzero(np.diff(rows, prepend=-1))
    column_starts = np.flatnonzero(np.diff(columns, prepend=-1))
    sums = np.add.reduceat(marked, column_starts, axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, row_starts, axis=0)
    counts[np.ix_(rows[row_starts], columns[column_starts])] += sums


def choose_tiles(
    shares: dict[str, np.ndarray], region: Region, rules: Rules
) -> list[tuple[int, int, str]]:
    """Chooses the tiles that one class covers.

    Args:
        shares: For each label, the share of each tile that it covers, float (rows, columns).
        region: The region of the tiles.
        rules: Rules for choosing tiles.

    Returns:
        Row, column and label of each chosen tile, sorted.
    """
    labels = list(shares)
    stacked = np.stack([shares[label] for label in labels])
    best = stacked.argmax(axis=0)
    pure = stacked.max(axis=0) >= rules.min_purity
    # Seeded by region, so that the choice does not depend on the other regions.
    rng = np.random.default_rng([rules.seed, zlib.crc32(region.name.encode())])
    chosen = []
    for number, label in enumerate(labels):
        found = np.argwhere(pure & (best == number))
        if rules.max_tiles is not None and len(found) > rules.max_tiles:
            found = found[np.sort(rng.choice(len(found), rules.max_tiles, replace=False))]
        chosen += [(int(row), int(column), label) for row, column in found]
    return sorted(chosen)


def _cut_region(job: tuple[Reader, Region, Rules, Path]) -> list[dict[str, str]] | str:
    """Returns the rows of a region's tiles, or the reason why it cannot be read."""
    read, region, rules, root = job
    folder = root / region.name
    files = [region.image, *region.masks.values()]
    source = {
        "rules": dataclasses.asdict(rules),
        "bytes": [file.stat().st_size for file in files],
    }
    if (folder / _RECORD).is_file():
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record["source"] == source:
            return [_row(region, root, *tile) for tile in record["tiles"]]
    tiles = []
    try:
        with new_folder(folder) as partial:
            for x, y, label, pixels in read(region, rules):
                Image.fromarray(pixels).save(partial / f"{x}_{y}.png")
                tiles.append((f"{x}_{y}.png", label))
            (partial / _RECORD).write_text(json.dumps({"source": source, "tiles": tiles}))
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return str(error)
    return [_row(region, root, *tile) for tile in tiles]


def _row(region: Region, root: Path, name: str, label: str) -> dict[str, str]:
    return {"path": f"{root.name}/{region.name}/{name}", "label": label} | region.facts


def _report(problems: dict[str, str], n_regions: int, max_lost: float) -> None:
    if not problems:
        return
    first = "; ".join(list(problems.values())[:3])
    if len(problems) > max_lost * n_regions:
        raise UserError(
            f"{len(problems):,} of {n_regions:,} regions cannot be read, more than the allowed "
            f"{max_lost:.0%}. Download them again: {first}"
        )
    logger.warning(
        f"{len(problems):,} of {n_regions:,} regions cannot be read and are left out: {first}"
    )
