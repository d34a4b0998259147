"""What became of slides that were embedded: a row each, and whether too much is lost."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from g2l_plugin.errors import UserError
from g2l_plugin.files import printable, write_text
from g2l_plugin.slides.cohort import CohortSlide

TABLE = "embeddings.csv"
"""File with a row for each slide."""


def part_table(shard: tuple[int, int]) -> str:
    """Name of the file with the rows of a part of the slides."""
    return f"embeddings-{shard[0]}-of-{shard[1]}.csv"


@dataclasses.dataclass(frozen=True)
class EmbeddedSlide:
    """What became of a slide, a row of `embeddings.csv`.

    Attributes:
        slide_id: Name of its file, without `.h5`.
        slide: Its path, relative to the folder of the slides.
        patient: The patient; "" if unknown.
        tiles: Tiles with an embedding.
        lost_tiles: Tiles that cannot be read, and are left out.
        status: "embedded", "no tissue", or why it cannot be used, as in an index.
        reason: The same in a sentence; "" for a slide without loss.
    """

    slide_id: str
    slide: str
    patient: str
    tiles: int
    lost_tiles: int
    status: str
    reason: str


def slide_id(slide: str) -> str:
    """The id of a slide, by its path: its file name without the ending."""
    return PurePosixPath(slide).stem


def check_names(slides: Sequence[CohortSlide]) -> None:
    """Checks that each slide has a file of its own.

    Raises:
        UserError: Two slides would have the same.
    """
    first: dict[str, str] = {}
    for slide in slides:
        other = first.setdefault(slide_id(slide.slide), slide.slide)
        if other != slide.slide:
            raise UserError(
                f"{other} and {slide.slide} would both be {slide_id(slide.slide)}.h5. Rename one, "
                "or embed them into two folders."
            )


def write_table(path: Path, rows: Sequence[EmbeddedSlide]) -> None:
    """Writes what became of slides as a CSV."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(EmbeddedSlide)])
    writer.writeheader()
    for row in rows:
        cells = dataclasses.asdict(row)
        writer.writerow({k: printable(v) if isinstance(v, str) else v for k, v in cells.items()})
    write_text(path, table.getvalue())


def check_losses(rows: Sequence[EmbeddedSlide], max_lost: float, table: Path) -> None:
    """Checks how much is lost.

    Args:
        rows: What became of the slides.
        max_lost: Largest share of them, and of their tiles, that may be lost, 0 to 1.
        table: The table of the rows, for the message.

    Raises:
        UserError: More is lost.
    """
    failed = [row for row in rows if row.status not in ("embedded", "no tissue", "duplicate")]
    limit = f"more than the {max_lost:.1%} that `max_lost` (--max-lost) allows. See {table}."
    if len(failed) > max_lost * len(rows):
        raise UserError(
            f"{len(failed)} of {len(rows)} slides cannot be embedded, {limit} The first: "
            f"{failed[0].reason}"
        )
    lost = sum(row.lost_tiles for row in rows)
    if lost > max_lost * (lost + sum(row.tiles for row in rows)):
        worst = max(rows, key=lambda row: row.lost_tiles)
        raise UserError(f"{lost:,} tiles cannot be read, {limit} Most are in {worst.slide}.")
