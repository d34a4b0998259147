"""Tiles cut from annotated pictures: those that one class covers, with it as their label."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
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
from g2l_plugin.parallel import WorkerCrash, run_in_processes

_RECORD = "tiles.json"
"""Beside the tiles of a region: how they were cut and what they are."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which tiles are cut.

    Attributes:
        size: Side of a tile, in pixels.
        min_purity: Least share of a tile that its class must cover, 0 to 1.
        max_tiles: Most tiles of a class from one region, chosen by chance; None takes all.
        seed: Seed of that choice.
    """

    size: int = 256
    min_purity: float = 0.75
    max_tiles: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.min_purity <= 1:
            raise UserError(
                f"Tiles of {self.size} pixels and a purity of {self.min_purity:g} cannot be cut: "
                "give a size of 1 or more, and a purity above 0 and up to 1."
            )


@dataclasses.dataclass(frozen=True)
class Region:
    """A slide, or a part of one, and what is annotated in it.

    Attributes:
        name: Of its own; the tiles' folder is called after it.
        image: The picture.
        masks: Label masks, by label, or one for all by "".
        facts: What else the manifest says of its tiles: patient, slide, centre.
    """

    name: str
    image: Path
    masks: dict[str, Path]
    facts: dict[str, str]


Tile = tuple[int, int, str, np.ndarray]
"""Left and upper edge in pixels of the region, label, pixels (size, size, 3) uint8."""

Reader = Callable[[Region, Rules], Iterator[Tile]]
"""Reads the tiles of a region; raises `UserError` where it cannot be read."""


def cut_regions(
    read: Reader,
    regions: Sequence[Region],
    rules: Rules,
    output: Path,
    workers: int | None = None,
    max_lost: float = 0.05,
) -> pd.DataFrame:
    """Cuts the tiles of all regions into `output/tiles`, several regions at a time.

    Regions that were cut by the same rules before are not cut again. Those that cannot be read are
    left out, and named.

    Args:
        read: Reads the tiles of a region; a function of a module, to travel between processes.
        regions: The regions.
        rules: Which tiles.
        output: The root of the manifest to come.
        workers: Processes; None takes one per CPU core.
        max_lost: Largest share of regions that may be left out.

    Returns:
        A row a tile: path relative to `output`, label, and the region's facts.

    Raises:
        UserError: Too many regions cannot be read, or there are no tiles.
    """
    # First of all: from here on, a manifest that is there may name tiles that are not.
    (output / "manifest.csv").unlink(missing_ok=True)
    jobs = [(read, region, rules, output / "tiles") for region in regions]
    rows: dict[str, list[dict[str, str]]] = {}
    problems: dict[str, str] = {}
    bar = tqdm(desc="Cutting tiles", total=len(jobs), unit="region")
    with bar, contextlib.closing(run_in_processes(_cut_region, jobs, workers)) as results:
        for (_, region, _, _), result in results:
            if isinstance(result, list):
                rows[region.name] = result
            elif isinstance(result, WorkerCrash):
                problems[region.name] = f"{region.image}: the process that read it died"
            else:
                problems[region.name] = result
            bar.update()
    _report(problems, len(regions), max_lost)
    table = pd.DataFrame([row for region in regions for row in rows.get(region.name, [])])
    if table.empty:
        raise UserError(
            f"No tile of {rules.size} x {rules.size} pixels is covered to {rules.min_purity:g} by "
            "one class. Cut smaller tiles, or lower the purity (--size, --min-purity)."
        )
    return table


def count_pixels(
    marked: np.ndarray, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray
) -> None:
    """Adds to each tile's count the marked pixels of a part of a mask.

    Args:
        marked: The part, bool (H, W).
        rows: Row of tiles that each row of pixels is in, ascending (H,).
        columns: Column of tiles that each column of pixels is in, ascending (W,).
        counts: Count of each tile, int (rows, columns); it is changed.
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
        shares: Share of each tile that a class covers, by label, float (rows, columns).
        region: Of which the tiles are.
        rules: Which tiles.

    Returns:
        Row, column and label of each, row by row.
    """
    labels = list(shares)
    stacked = np.stack([shares[label] for label in labels])
    best = stacked.argmax(axis=0)
    pure = stacked.max(axis=0) >= rules.min_purity
    # The same tiles whichever other regions there are.
    rng = np.random.default_rng([rules.seed, zlib.crc32(region.name.encode())])
    chosen = []
    for number, label in enumerate(labels):
        found = np.argwhere(pure & (best == number))
        if rules.max_tiles is not None and len(found) > rules.max_tiles:
            found = found[np.sort(rng.choice(len(found), rules.max_tiles, replace=False))]
        chosen += [(int(row), int(column), label) for row, column in found]
    return sorted(chosen)


def safe_name(name: str) -> str:
    """A name without what is awkward in a path."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _cut_region(job: tuple[Reader, Region, Rules, Path]) -> list[dict[str, str]] | str:
    """The rows of a region's tiles, or why it has none."""
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
            f"{len(problems):,} of {n_regions:,} pictures cannot be used, more than "
            f"{max_lost:.0%}: {first}"
        )
    logger.warning(f"{len(problems):,} of {n_regions:,} pictures are left out: {first}")
