"""An index on disk: the slides of a cohort, and where the tiles of each are.

An index is a folder with `cohort.csv` (the slides chosen), `index.json` (the settings), `slides/`
and `thumbnails/` (a tile table and a picture of each slide), `slides.csv` (the outcome for each
slide), `index.html` (the same as a page) and `.lock` (held while slides are indexed).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from g2l_plugin.errors import UserError
from g2l_plugin.files import printable, write_text
from g2l_plugin.slides.cohort import CohortSlide, read_cohort
from g2l_plugin.slides.duplicates import hash_candidates, mark_duplicates
from g2l_plugin.slides.index_files import (
    read_current_record,
    read_tiles,
    read_xy,
    thumbnail_path,
    write_table,
)
from g2l_plugin.slides.slide import ReadPlan, withheld_by_system
from g2l_plugin.slides.thumbnail import write_page
from g2l_plugin.slides.tile_grid import SlideRecord, TileGrid


@dataclasses.dataclass(frozen=True)
class SlideIndex:
    """The tiles of one slide that has any.

    Attributes:
        path: The slide.
        plan: How its tiles are read.
        xy: Upper left corners in pixels of level 0, int32 (tiles, 2), with neighbours close.
        bytes: Size of its file when it was indexed.
        patient: The patient, or the slide's name in the index if the patient is unknown.
        centre: The centre; "" if unknown.
        knows_patient: Whether the patient is known.
    """

    path: Path
    plan: ReadPlan
    xy: np.ndarray
    bytes: int = 0
    patient: str = ""
    centre: str = ""
    knows_patient: bool = False


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a cohort.

    Attributes:
        folder: The folder of the index.
        root: The folder of the slides.
        cohort: The slides chosen.
        records: The record of each slide, in the order of `cohort`. A duplicate of an earlier slide
            has the problem "duplicate".
    """

    folder: Path
    root: Path
    cohort: list[CohortSlide]
    records: list[SlideRecord]

    def used(self) -> list[CohortSlide]:
        """Returns the slides that have tiles."""
        pairs = zip(self.cohort, self.records, strict=True)
        return [slide for slide, record in pairs if record.outcome == "used"]

    def load(self) -> list[SlideIndex]:
        """Reads the tile tables of the slides that have tiles."""
        return [
            SlideIndex(
                self.root / slide.slide,
                record.plan,
                read_xy(self.folder, slide),
                record.bytes,
                slide.patient or slide.slide,
                slide.centre,
                bool(slide.patient),
            )
            for slide, record in zip(self.cohort, self.records, strict=True)
            if record.outcome == "used" and record.plan is not None
        ]

    def part(self, shard: tuple[int, int]) -> Index:
        """The i-th of n parts, (i, n), as `build_index` divides a cohort."""
        part = slice(shard[0] - 1, None, shard[1])
        return dataclasses.replace(self, cohort=self.cohort[part], records=self.records[part])

    def counts(self) -> Counter[str]:
        """Counts slides by outcome: "used", "no tissue", or the problem."""
        return Counter(record.outcome for record in self.records)

    def check_losses(self, max_lost: float) -> None:
        """Raises an error if too many slides or tiles are lost.

        Slides without tissue and duplicates do not count as lost.

        Args:
            max_lost: Maximum share of slides, and of tiles on tissue, that may be lost, 0 to 1.

        Raises:
            UserError: More is lost. The message has the first reason.
        """
        lost = [record for record in self.records if record.problem not in ("", "duplicate")]
        if len(lost) > max_lost * len(self.records):
            raise UserError(
                f"{len(lost)} of {len(self.records)} slides cannot be used, more than the "
                f"{max_lost:.1%} that `max_lost` (MAX_LOST, --max-lost) allows. See "
                f"{self.folder / 'slides.csv'}. The first: {lost[0].message}"
            )
        damaged = sum(record.damaged for record in self.records)
        tiles = sum(record.tiles for record in self.records) + damaged
        if damaged > max_lost * tiles:
            worst = max(range(len(self.records)), key=lambda n: self.records[n].damaged)
            raise UserError(
                f"{damaged:,} of {tiles:,} tiles cannot be read, more than the {max_lost:.1%} that "
                f"`max_lost` (MAX_LOST, --max-lost) allows. Most of them are in "
                f"{self.cohort[worst].slide}."
            )


def open_index(
    index_dir: str | Path,
    grid: TileGrid,
    root: str | Path,
    keep_duplicates: bool = False,
    shard: tuple[int, int] = (1, 1),
) -> Index:
    """Opens an index that `build_index` made.

    Args:
        index_dir: Folder of the index.
        grid: The grid of the tiles, as in `build_index`.
        root: Folder of the slides.
        keep_duplicates: Whether to use slides of the same content more than once.
        shard: (i, n) opens the part that `build_index` indexes with it: the others may be missing.

    Raises:
        UserError: There is no index, or some slide is not indexed yet.

    Examples:
        >>> from g2l_plugin import TileGrid, build_index
        >>> from g2l_plugin.demo.generate import make_cohort
        >>> from g2l_plugin.slides.index import open_index
        >>> _ = make_cohort("demo", n_slides=4, size=512, show_progress=False)
        >>> _ = build_index("index", TileGrid(64, 64), "demo/slides")
        >>> index = open_index("index", TileGrid(64, 64), "demo/slides")
        >>> index.counts()
        Counter({'used': 4})
        >>> slide = index.load()[0]
        >>> slide.path.name, slide.xy.shape == (index.records[0].tiles, 2)
        ('east-001.tiff', True)
    """
    folder, root = Path(index_dir).expanduser(), Path(root).expanduser()
    cohort, records = _read_records(folder, root, grid, shard)
    if not keep_duplicates:
        # The hashes are in the tables, unless duplicates were kept when the index was made.
        records = mark_duplicates(root, cohort, hash_candidates(root, cohort, records))
    return Index(folder, root, cohort, records)


def read_settings(index_dir: str | Path) -> dict[str, Any]:
    """Reads the settings of an index: `cohort`, `grid` and `keep_duplicates`.

    Raises:
        UserError: There is no index, or its settings are damaged.
    """
    folder = Path(index_dir).expanduser()
    try:
        return json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no index in {folder}. Make one: g2l index SLIDES {folder}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{folder / 'index.json'} is damaged ({error}). Remove it and run g2l index again: "
            "no slide is indexed twice."
        ) from error


def summarize_index(
    index_dir: str | Path, grid: TileGrid, root: str | Path, keep_duplicates: bool = False
) -> Index:
    """Opens an index and writes its summary, `slides.csv` and `index.html`.

    Args:
        index_dir: Folder of an index whose slides are all indexed.
        grid: The grid of the tiles, as in `build_index`.
        root: Folder of the slides.
        keep_duplicates: Whether to use slides of the same content more than once.

    Raises:
        UserError: There is no index, or some slide is not indexed yet.
    """
    if not keep_duplicates:
        _store_hashes(Path(index_dir).expanduser(), Path(root).expanduser(), grid)
    index = open_index(index_dir, grid, root, keep_duplicates)
    rows = [
        _summary_row(slide, record)
        for slide, record in zip(index.cohort, index.records, strict=True)
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(index.folder / "slides.csv", table.getvalue())
    thumbnails = [thumbnail_path(index.folder, slide) for slide in index.cohort]
    write_page(index.folder / "index.html", rows, thumbnails)
    return index


def _read_records(
    folder: Path, root: Path, grid: TileGrid, shard: tuple[int, int] = (1, 1)
) -> tuple[list[CohortSlide], list[SlideRecord]]:
    """Reads the cohort and the record of each slide.

    Raises:
        UserError: There is no index, or some slide is not indexed yet.
    """
    read_settings(folder)
    cohort = read_cohort(folder / "cohort.csv")
    part = range(len(cohort))[shard[0] - 1 :: shard[1]]
    found = {number: _find_record(folder, root, cohort[number], grid) for number in part}
    waiting = [number for number, record in found.items() if record is None]
    if waiting:
        names = ", ".join(cohort[number].slide for number in waiting[:3])
        raise UserError(
            f"{len(waiting)} of {len(cohort)} slides are not indexed, or have changed since "
            f"({names}{', …' if len(waiting) > 3 else ''}): slides {_ranges(waiting)} of "
            f"{folder / 'cohort.csv'}. Run their shards again, or `g2l index` without --shard."
        )
    records = [record for record in found.values() if record is not None]
    return [cohort[number] for number in part], records


def _store_hashes(folder: Path, root: Path, grid: TileGrid) -> None:
    """Writes the hashes that tell duplicates into the tables, so that nothing is read twice."""
    cohort, records = _read_records(folder, root, grid)
    for slide, before, after in zip(
        cohort, records, hash_candidates(root, cohort, records), strict=True
    ):
        if after != before:
            write_table(folder, slide, grid, after, read_tiles(folder, slide))


def _find_record(
    folder: Path, root: Path, slide: CohortSlide, grid: TileGrid
) -> SlideRecord | None:
    """Finds the record of a slide, or returns None if it has to be indexed first."""
    record = read_current_record(folder, root, slide, grid)
    if record is None and (withheld := withheld_by_system(root / slide.slide)) is not None:
        return SlideRecord(problem=withheld.problem, message=str(withheld))
    return record


def _summary_row(slide: CohortSlide, record: SlideRecord) -> dict[str, Any]:
    row = dataclasses.asdict(slide) | {"outcome": record.outcome} | dataclasses.asdict(record)
    del row["plan"], row["problem"]
    return row | {key: printable(row[key]) for key in ("slide", "message")}


def _ranges(numbers: Sequence[int]) -> str:
    """Abbreviates ascending numbers, counted from 1 instead of 0, e.g. 0, 1, 2, 6 to "1-3, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] = number + 1
        else:
            spans.append([number + 1, number + 1])
    words = [f"{a}-{b}" if b > a else f"{a}" for a, b in spans]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")
