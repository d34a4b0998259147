"""Tissue to tile table: where the tiles of each slide are, one parquet file a slide.

An index is a folder: `cohort.csv` (the slides chosen), `slides/` (a tile table each), `thumbnails/`
(a picture each), `slides.csv` (what became of each) and `index.html` (to look at). Every file is
renamed into its place when it is whole, so an index can be stopped anywhere and goes on from there.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyarrow.parquet as pq
from loguru import logger
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.files import new_file, write_text
from g2l_plugin.parallel import WorkerCrash, run_in_processes
from g2l_plugin.slides import slide as slide_lib
from g2l_plugin.slides.cohort import CohortSlide, choose_cohort, read_cohort, write_cohort
from g2l_plugin.slides.thumbnail import write_page
from g2l_plugin.slides.tile_table import file_stem, read_record, read_xy, table_path, write_table
from g2l_plugin.slides.tiling import SlideRecord, TileGrid, index_slide


@dataclasses.dataclass(frozen=True)
class SlideIndex:
    """The tiles of one slide that has any.

    Attributes:
        path: The slide.
        plan: How its tiles are read.
        xy: Upper left corners in pixels of level 0, int32 (tiles, 2), neighbours together.
    """

    path: Path
    plan: slide_lib.ReadPlan
    xy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a cohort.

    Attributes:
        folder: Where it is.
        root: The folder of the slides.
        cohort: The slides chosen.
        records: What became of each, in the order of `cohort`; a duplicate has that as its problem.
    """

    folder: Path
    root: Path
    cohort: list[CohortSlide]
    records: list[SlideRecord]

    def used(self) -> list[CohortSlide]:
        """The slides that have tiles."""
        return [slide for slide, _ in self._used()]

    def load(self) -> list[SlideIndex]:
        """Reads the tile tables of the slides that have tiles."""
        return [
            SlideIndex(self.root / slide.slide, plan, read_xy(self.folder, slide))
            for slide, plan in self._used()
        ]

    def _used(self) -> list[tuple[CohortSlide, slide_lib.ReadPlan]]:
        return [
            (slide, record.plan)
            for slide, record in zip(self.cohort, self.records, strict=True)
            if not record.problem and record.plan is not None and record.tiles
        ]

    def counts(self) -> Counter[str]:
        """Counts slides by what became of them: "used", "no tissue", or the problem."""
        return Counter(_outcome(record) for record in self.records)

    def check_losses(self, max_lost: float) -> None:
        """Stops where more is lost than was allowed.

        A slide without tissue and a duplicate are no loss.

        Args:
            max_lost: Largest share that may be lost, of slides and of tiles on tissue, 0 to 1.

        Raises:
            UserError: More is lost; the message has the first reason.
        """
        lost = [record for record in self.records if record.problem not in ("", "duplicate")]
        if len(lost) > max_lost * len(self.records):
            raise UserError(
                f"{len(lost)} of {len(self.records)} slides cannot be used, more than the "
                f"{max_lost:.1%} that `max_lost` (MAX_LOST, --max-lost) allows; "
                f"{self.folder / 'slides.csv'} lists them. The first: {lost[0].message}"
            )
        damaged = sum(record.damaged for record in self.records)
        tiles = sum(record.tiles for record in self.records) + damaged
        if damaged > max_lost * tiles:
            worst = max(range(len(self.records)), key=lambda n: self.records[n].damaged)
            raise UserError(
                f"{damaged:,} of {tiles:,} tiles cannot be read, more than the {max_lost:.1%} that "
                f"`max_lost` (MAX_LOST, --max-lost) allows; most of them in "
                f"{self.cohort[worst].slide}."
            )


def build_index(
    index_dir: str | Path,
    grid: TileGrid,
    root: str | Path,
    slides: str | Path | Sequence[str] | None = None,
    n_slides: int | None = None,
    seed: int = 0,
    one_per_patient: bool = True,
    keep_duplicates: bool = False,
    max_lost: float = 0.01,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Index | None:
    """Chooses a cohort and indexes its slides in parallel; what was done before is kept.

    A cohort that was chosen with the same arguments is read and not chosen again, and a slide is
    indexed again only when its file or the grid has changed.

    Args:
        index_dir: Folder of the index.
        grid: What makes a tile.
        root: Folder of the slides.
        slides: Which of them, as in `choose_cohort`.
        n_slides: How many to choose.
        seed: Seed of the choice.
        one_per_patient: Whether to take at most one slide of a patient.
        keep_duplicates: Whether to take slides of the same content more than once.
        max_lost: Share of a GDC manifest's slides that may be missing.
        workers: Processes; None takes one per CPU core.
        shard: (i, n), i from 1 to n: index only every n-th slide, for n machines that share
            `index_dir`, and write no summary.

    Returns:
        The index, or None for a shard.

    Raises:
        UserError: There are no slides, or their folder went away. What was done by then is kept.
    """
    root, folder = Path(root).expanduser(), Path(index_dir).expanduser()
    choice = {
        "root": str(root.resolve()),
        "slides": str(slides) if isinstance(slides, (str, Path)) else slides,
        "n_slides": n_slides,
        "seed": seed,
        "one_per_patient": one_per_patient,
    }
    settings = {
        "cohort": choice,
        "grid": dataclasses.asdict(grid),
        "keep_duplicates": keep_duplicates,
    }
    cohort = _written_cohort(folder, choice)
    if cohort is None:
        cohort = choose_cohort(root, slides, n_slides, seed, one_per_patient)
        _check_downloads(folder, root, slides, cohort, max_lost)
        write_cohort(folder / "cohort.csv", cohort)
    # After the cohort: whoever finds these settings finds the cohort that they chose.
    write_text(folder / "index.json", json.dumps(settings, indent=1) + "\n")
    part = cohort if shard is None else cohort[shard[0] - 1 :: shard[1]]
    _index_slides(folder, root, part, grid, workers)
    if shard is not None:
        return None
    return summarize_index(folder, grid, root, keep_duplicates)


def summarize_index(
    index_dir: str | Path, grid: TileGrid, root: str | Path, keep_duplicates: bool = False
) -> Index:
    """Gathers what became of every slide and writes `slides.csv` and `index.html`.

    Args:
        index_dir: Folder of an index whose slides are all indexed.
        grid: What makes a tile.
        root: Folder of the slides.
        keep_duplicates: Whether slides of the same content count more than once.

    Raises:
        UserError: There is no index, or some slide is not indexed yet.
    """
    index = open_index(index_dir, grid, root, keep_duplicates)
    rows = [
        _summary_row(slide, record)
        for slide, record in zip(index.cohort, index.records, strict=True)
    ]
    with new_file(index.folder / "slides.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pictures = [f"thumbnails/{file_stem(slide)}.jpg" for slide in index.cohort]
    write_page(index.folder / "index.html", rows, pictures)
    return index


def open_index(
    index_dir: str | Path, grid: TileGrid, root: str | Path, keep_duplicates: bool = False
) -> Index:
    """Reads what became of every slide.

    Args:
        index_dir: Folder of the index.
        grid: What makes a tile.
        root: Folder of the slides.
        keep_duplicates: Whether slides of the same content count more than once.

    Raises:
        UserError: There is no index, or some slide is not indexed yet.
    """
    folder, root = Path(index_dir).expanduser(), Path(root).expanduser()
    read_settings(folder)
    cohort = read_cohort(folder / "cohort.csv")
    records: list[SlideRecord] = []
    waiting: list[int] = []
    first_with: dict[str, str] = {}
    for number, slide in enumerate(cohort):
        record = _current_record(folder, root, slide, grid)
        if record is None and not (root / slide.slide).is_file():
            message = f"Slide {root / slide.slide} does not exist."
            record = SlideRecord(problem="missing", message=message)
        if record is None:
            waiting.append(number)
            continue
        first = first_with.setdefault(record.quickhash, slide.slide) if record.quickhash else ""
        if not keep_duplicates and not record.problem and first not in ("", slide.slide):
            message = f"Slide {root / slide.slide} has the same content as {first}."
            record = dataclasses.replace(record, problem="duplicate", message=message, tiles=0)
        records.append(record)
    if waiting:
        names = ", ".join(cohort[number].slide for number in waiting[:3])
        raise UserError(
            f"{len(waiting)} of {len(cohort)} slides are not indexed, or changed since ({names}"
            f"{', …' if len(waiting) > 3 else ''}): numbers {_ranges(waiting)} of "
            f"{folder / 'cohort.csv'}. Run their shards again, or `g2l index` without --shard."
        )
    return Index(folder, root, cohort, records)


def read_settings(index_dir: str | Path) -> dict[str, Any]:
    """Reads what an index was made with: `cohort`, `grid` and `keep_duplicates`.

    Raises:
        UserError: There is no index.
    """
    folder = Path(index_dir).expanduser()
    try:
        return json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no index in {folder}. Make one: g2l index SLIDES {folder}"
        ) from error


def _written_cohort(folder: Path, choice: dict[str, Any]) -> list[CohortSlide] | None:
    """The cohort that these settings chose before, or None."""
    if not (folder / "index.json").is_file():
        return None
    written = read_settings(folder)["cohort"]
    if written == choice:
        return read_cohort(folder / "cohort.csv")
    changed = [
        f"{key} {written.get(key)!r} to {choice[key]!r}"
        for key in choice
        if written.get(key) != choice[key]
    ]
    logger.warning(f"The cohort of {folder} is chosen anew: {', '.join(changed)}.")
    return None


def _check_downloads(
    folder: Path,
    root: Path,
    slides: str | Path | Sequence[str] | None,
    cohort: Sequence[CohortSlide],
    max_lost: float,
) -> None:
    """Raises where most of a list is not there; of a GDC manifest, names what to download."""
    missing = [slide for slide in cohort if not (root / slide.slide).is_file()]
    if len(missing) <= max_lost * len(cohort):
        return
    message = (
        f"{len(missing)} of the {len(cohort)} slides chosen are not in {root}, "
        f"first {missing[0].slide}."
    )
    if all(slide.md5 for slide in missing):
        lines = ["id\tfilename\tmd5\tsize\tstate"]
        for slide in missing:
            identifier, _, name = slide.slide.rpartition("/")
            lines.append(f"{identifier}\t{name}\t{slide.md5}\t{slide.bytes or ''}\treleased")
        manifest = folder / "gdc_manifest.txt"
        write_text(manifest, "\n".join(lines) + "\n")
        message += f" Download them: gdc-client download -m {manifest} -d {root}"
    else:
        message += f" Expected paths relative to {root}, as {slides} has them."
    raise UserError(message)


def _index_slides(
    folder: Path, root: Path, slides: Sequence[CohortSlide], grid: TileGrid, workers: int | None
) -> None:
    """Indexes what is not indexed yet."""
    for name in ("slides", "thumbnails"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder, root, slide, grid)
        for slide in slides
        if _current_record(folder, root, slide, grid) is None
    ]
    if not jobs:
        return
    progress = tqdm(
        desc="Indexing slides",
        total=len(slides),
        initial=len(slides) - len(jobs),
        unit="slide",
        dynamic_ncols=True,
    )
    problems: Counter[str] = Counter()
    with progress, contextlib.closing(run_in_processes(_index_to_file, jobs, workers)) as results:
        for job, problem in results:
            if isinstance(problem, WorkerCrash):
                problem = _record_crash(*job)
            if problem:
                problems[problem] += 1
                progress.set_postfix(problems)
                if not root.is_dir():
                    raise UserError(
                        f"Slide folder {root} went away after {progress.n} of {len(slides)} "
                        "slides. Bring it back and run the same command: it goes on from there."
                    )
            progress.update()


def _index_to_file(job: tuple[Path, Path, CohortSlide, TileGrid]) -> str:
    """Indexes one slide and writes its files; returns its problem, "" for none."""
    folder, root, slide, grid = job
    path = root / slide.slide
    tiles: dict[str, np.ndarray] = {}
    picture = None
    try:
        stat = path.stat()
    except OSError:
        return "missing"  # not written: the next run looks again
    for name, suffix in (("slides", "parquet"), ("thumbnails", "jpg")):
        for partial in (folder / name).glob(f".{glob.escape(file_stem(slide))}.{suffix}.*.part"):
            partial.unlink(missing_ok=True)  # of a run that was killed
    record = _moved_record(folder, root, slide, grid)
    if record is not None:
        tiles = dict(pq.read_table(table_path(folder, slide)).to_pydict())
    elif slide.bytes is not None and slide.bytes != stat.st_size:
        message = f"Slide {path} has {stat.st_size:,} bytes of {slide.bytes:,}: download it again."
        record = SlideRecord(problem="incomplete", message=message)
    else:
        try:
            record, tiles, picture = index_slide(path, grid)
        except slide_lib.SlideError as error:
            by_hand = error.problem in ("no resolution", "wrong resolution")
            record = SlideRecord(problem=error.problem, message=str(error), mpp_by_hand=by_hand)
        except Exception as error:  # whatever a damaged file does to the libraries that read it
            message = (
                f"Slide {path} cannot be indexed: {error!r}. The file is damaged: move it away."
            )
            record = SlideRecord(problem="damaged", message=message)
        if record.problem and not path.is_file():
            return "missing"
    record = dataclasses.replace(record, bytes=stat.st_size, modified=stat.st_mtime_ns)
    if picture is not None:
        with new_file(folder / "thumbnails" / f"{file_stem(slide)}.jpg") as partial:
            picture.save(partial, format="jpeg", quality=80)
    write_table(folder, slide, grid, record, tiles)
    return record.problem


def _record_crash(folder: Path, root: Path, slide: CohortSlide, grid: TileGrid) -> str:
    path = root / slide.slide
    stat = path.stat()
    record = SlideRecord(
        problem="crashes the reader",
        message=f"Slide {path} crashes the library that reads it: move it away.",
        bytes=stat.st_size,
        modified=stat.st_mtime_ns,
    )
    write_table(folder, slide, grid, record, {})
    return record.problem


def _current_record(
    folder: Path, root: Path, slide: CohortSlide, grid: TileGrid
) -> SlideRecord | None:
    """The record of a slide that has not changed since, by size and time."""
    record = read_record(folder, slide, grid)
    try:
        stat = (root / slide.slide).stat()
    except OSError:
        return None
    if record is None or (record.bytes, record.modified) != (stat.st_size, stat.st_mtime_ns):
        return None
    return record


def _moved_record(
    folder: Path, root: Path, slide: CohortSlide, grid: TileGrid
) -> SlideRecord | None:
    """The record of a slide whose file has another time, but the same size and content."""
    record = read_record(folder, slide, grid)
    path = root / slide.slide
    if record is None or not record.quickhash or record.bytes != path.stat().st_size:
        return None
    try:
        with slide_lib.open_slide(path) as handle:
            same = handle.properties.get(openslide.PROPERTY_NAME_QUICKHASH1) == record.quickhash
    except slide_lib.SlideError:
        return None
    return record if same else None


def _outcome(record: SlideRecord) -> str:
    return record.problem or ("used" if record.tiles else "no tissue")


def _summary_row(slide: CohortSlide, record: SlideRecord) -> dict[str, Any]:
    row = dataclasses.asdict(slide) | {"outcome": _outcome(record)} | dataclasses.asdict(record)
    del row["plan"], row["problem"]
    return row


def _ranges(numbers: Sequence[int]) -> str:
    """Names numbers, counted from 1, in few words, such as 1-3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] = number + 1
        else:
            spans.append([number + 1, number + 1])
    words = [f"{a}-{b}" if b > a else f"{a}" for a, b in spans]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")
