"""Making an index: a cohort is chosen and its slides are indexed in parallel.

Each file is written under another name and renamed once it is complete, so indexing can be
interrupted at any time and continues from there. Of two processes with one folder, or with the same
shard of it, the second waits for the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger
from PIL import Image
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.files import locked, new_file, write_text
from g2l_plugin.parallel.cluster import check_scheduler
from g2l_plugin.parallel.failures import OutOfTime, WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs
from g2l_plugin.slides.cohort import (
    CohortSlide,
    check_slide_folder,
    choose_cohort,
    read_cohort,
    write_cohort,
)
from g2l_plugin.slides.index import Index, read_settings, summarize_index
from g2l_plugin.slides.index_files import (
    file_state,
    read_current_record,
    read_moved_record,
    read_tiles,
    remove_partial_files,
    thumbnail_path,
    write_table,
)
from g2l_plugin.slides.slide import SlideError, SlideProblem, unreadable, withheld_by_system
from g2l_plugin.slides.slide_list import list_digest
from g2l_plugin.slides.tile_grid import SlideRecord, TileGrid, index_slide

_Job = tuple[Path, Path, CohortSlide, TileGrid]
"""Folder of the index, folder of the slides, the slide, and the grid."""


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
    slide_timeout: float = 30,
    scheduler: str | None = None,
) -> Index | None:
    """Chooses a cohort and indexes its slides in parallel, continuing an index that exists.

    The cohort is chosen again only if the arguments of the choice or the content of the list have
    changed, and a slide is indexed again only if its file or the grid has changed, or if some of it
    could not be read. If the folder has got slides that would be chosen today, a warning says so.

    Args:
        index_dir: Folder of the index.
        grid: Size and resolution of the tiles, and which are kept.
        root: Folder of the slides.
        slides: The slides to choose from, as in `choose_cohort`.
        n_slides: How many slides to choose; None chooses all.
        seed: Seed of the choice.
        one_per_patient: Whether to use at most one slide per patient.
        keep_duplicates: Whether to use slides of the same content more than once.
        max_lost: Maximum share of the chosen slides that may be missing from `root`.
        workers: Number of processes; None uses one per CPU core.
        shard: (i, n), with i from 1 to n, indexes only every n-th slide and writes no summary: for
            n machines that share `index_dir`.
        slide_timeout: Minutes that a slide may take; one that takes longer counts as unusable.
        scheduler: Address of a Dask scheduler whose workers index the slides, as tcp://host:8786;
            None uses processes of this machine.

    Returns:
        The index, or None for a shard.

    Raises:
        UserError: There are no slides, too many are missing, or their folder disappears; or the
            cluster cannot be used. The slides indexed until then are kept.

    Examples:
        >>> from g2l_plugin import TileGrid, build_index
        >>> from g2l_plugin.demo.generate import make_cohort
        >>> _ = make_cohort("demo", n_slides=4, size=512, show_progress=False)
        >>> index = build_index("index", TileGrid(width=64, height=64), "demo/slides")
        >>> [slide.slide for slide in index.used()]
        ['east-001.tiff', 'north-000.tiff', 'south-002.tiff', 'west-003.tiff']
        >>> (index.folder / "index.html").is_file()
        True
    """
    if not slide_timeout > 0:
        raise UserError(f"`slide_timeout` is {slide_timeout:g} minutes. Expected more than 0.")
    root, folder = Path(root).expanduser(), Path(index_dir).expanduser()
    check_slide_folder(root)  # before the index has a folder
    if scheduler is not None:
        check_scheduler(scheduler)  # before the choice, which can take long
        # Absolute, because workers run in folders of their own.
        root, folder = root.absolute(), folder.absolute()
    choice = {
        "root": str(root.resolve()),
        "slides": _identify(slides),
        "n_slides": n_slides,
        "seed": seed,
        "one_per_patient": one_per_patient,
    }
    settings = {
        "cohort": choice,
        "grid": dataclasses.asdict(grid),
        "keep_duplicates": keep_duplicates,
    }
    with locked(folder / ".lock", shard and shard[0]):
        cohort = _read_same_cohort(folder, choice)
        if cohort is not None and slides is None:
            _warn_of_others(folder, root, cohort, n_slides, seed, one_per_patient)
        if cohort is None:
            cohort = choose_cohort(root, slides, n_slides, seed, one_per_patient)
            _check_downloads(folder, root, slides, cohort, max_lost)
            write_cohort(folder / "cohort.csv", cohort)
        # After the cohort: settings on disk mean that the cohort they chose is on disk too.
        write_text(folder / "index.json", json.dumps(settings, indent=1) + "\n")
        part = cohort if shard is None else cohort[shard[0] - 1 :: shard[1]]
        _index_slides(folder, root, part, grid, workers, slide_timeout, scheduler)
        if shard is not None:
            return None
        return summarize_index(folder, grid, root, keep_duplicates)


def _identify(slides: str | Path | Sequence[str] | None) -> str | list[str] | None:
    """Describes the slides to choose from, a list by its content: it may be edited or moved."""
    if slides is None:
        return None
    if isinstance(slides, (str, Path)):
        return f"sha256:{list_digest(Path(slides).expanduser())}"
    return [str(name) for name in slides]


def _read_same_cohort(folder: Path, choice: dict[str, Any]) -> list[CohortSlide] | None:
    """Reads the cohort that the same choice wrote before, or returns None."""
    if not (folder / "index.json").is_file() or not (folder / "cohort.csv").is_file():
        return None
    written = read_settings(folder)["cohort"]
    if written == choice:
        return read_cohort(folder / "cohort.csv")
    changed = [
        "another list of slides" if key == "slides" else f"{key} {written.get(key)!r} to {value!r}"
        for key, value in choice.items()
        if written.get(key) != value
    ]
    logger.warning(f"The cohort of {folder} is chosen again: {', '.join(changed)}.")
    return None


def _warn_of_others(
    folder: Path,
    root: Path,
    cohort: Sequence[CohortSlide],
    n_slides: int | None,
    seed: int,
    one_per_patient: bool,
) -> None:
    """Logs a warning if the folder has slides that would be chosen today, but were not."""
    today = choose_cohort(root, None, n_slides, seed, one_per_patient)
    kept = {slide.slide for slide in cohort}
    if others := [slide.slide for slide in today if slide.slide not in kept]:
        count = f"{len(others):,} slides here are" if len(others) > 1 else "1 slide here is"
        logger.warning(
            f"{count} not in the cohort of {folder}, which was chosen "
            f"before and is kept (first {others[0]}). To take them, remove "
            f"{folder / 'cohort.csv'} and run the same command: no slide is indexed twice."
        )


def _check_downloads(
    folder: Path,
    root: Path,
    slides: str | Path | Sequence[str] | None,
    cohort: Sequence[CohortSlide],
    max_lost: float,
) -> None:
    """Raises an error if too many slides are missing.

    If they come from a GDC manifest, a manifest of the missing slides is written for the download.
    """
    missing = [slide for slide in cohort if _is_missing(root / slide.slide)]
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
        message += f" Give their paths relative to {root} in {slides}."
    raise UserError(message)


def _is_missing(path: Path) -> bool:
    """Whether a slide is not there, rather than withheld by rights or the network."""
    withheld = withheld_by_system(path)
    return withheld is not None and withheld.problem == "missing"


def _index_slides(
    folder: Path,
    root: Path,
    slides: Sequence[CohortSlide],
    grid: TileGrid,
    workers: int | None,
    slide_timeout: float,
    scheduler: str | None,
) -> None:
    """Indexes the slides that are not indexed yet, or could not be read in full."""
    for name in ("slides", "thumbnails"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    found = [read_current_record(folder, root, slide, grid) for slide in slides]
    jobs = [
        (folder, root, slide, grid)
        for slide, record in zip(slides, found, strict=True)
        if record is None or not record.is_final
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
    needs = (root, folder / "index.json")
    outcomes = run_jobs(_index_to_files, jobs, workers, slide_timeout * 60, scheduler, needs)
    with progress, contextlib.closing(outcomes):
        for job, problem in outcomes:
            if isinstance(problem, (WorkerCrash, OutOfTime)):
                problem = _record_failure(job, problem, slide_timeout)
            if problem:
                problems[problem] += 1
                progress.set_postfix(problems)
                if not root.is_dir():
                    raise UserError(
                        f"Slide folder {root} disappeared after {progress.n} of {len(slides)} "
                        "slides. Restore it and run the same command: it continues from there."
                    )
            progress.update()


def _index_to_files(job: _Job) -> str:
    """Indexes one slide and writes its files; returns its problem, or ""."""
    folder, root, slide, grid = job
    path = root / slide.slide
    try:
        size, modified = file_state(path)
    except OSError:
        return "missing"  # nothing is written, so that the next run looks again
    remove_partial_files(folder, slide)
    tiles: dict[str, Any] = {}
    thumbnail = None
    record = read_moved_record(folder, root, slide, grid)
    if record is not None:
        tiles = read_tiles(folder, slide)
    elif slide.bytes is not None and slide.bytes != size:
        message = f"Slide {path} has {size:,} of {slide.bytes:,} bytes. Download it again."
        record = SlideRecord(problem="incomplete", message=message)
    else:
        record, tiles, thumbnail = _try_to_index(path, grid, slide.mpp)
        if record.problem and _is_missing(path):
            return "missing"
    record = dataclasses.replace(record, bytes=size, modified=modified, sha256="")
    if thumbnail is not None:
        with new_file(thumbnail_path(folder, slide)) as partial:
            thumbnail.save(partial, format="jpeg", quality=80)
    write_table(folder, slide, grid, record, tiles)
    return record.problem


def _try_to_index(
    path: Path, grid: TileGrid, mpp: float | None
) -> tuple[SlideRecord, dict[str, Any], Image.Image | None]:
    """Indexes a slide as `index_slide` does, or records why it cannot be used."""
    try:
        return index_slide(path, grid, mpp)
    except SlideError as error:
        overwritten = error.problem in ("no resolution", "wrong resolution")
        record = SlideRecord(problem=error.problem, message=str(error), mpp_overwritten=overwritten)
    except (OSError, MemoryError) as error:
        withheld = unreadable(path, error)
        record = SlideRecord(problem=withheld.problem, message=str(withheld))
    except Exception as error:  # a damaged file can raise any error in the libraries that read it
        message = f"Slide {path} cannot be indexed: {error!r}. The file is damaged: move it away."
        record = SlideRecord(problem="damaged", message=message)
    return record, {}, None


def _record_failure(job: _Job, failure: WorkerCrash | OutOfTime, slide_timeout: float) -> str:
    """Writes the record of a slide whose process died or was ended; returns its problem."""
    folder, root, slide, grid = job
    path = root / slide.slide
    problem: SlideProblem
    if isinstance(failure, OutOfTime):
        problem = "timed out"
        message = (
            f"Slide {path} took longer than {slide_timeout:g} minutes: the disk is slow, or the "
            "file hangs the library that reads it. Run again with a longer --slide-timeout, or "
            "move the file away."
        )
    else:
        problem = "crashes the reader"
        message = (
            f"The process that read slide {path} died: the file crashes the library that reads "
            "it, or memory ran out. Run again with more memory for each process (fewer "
            "--workers), or move the file away."
        )
    try:
        size, modified = file_state(path)
    except OSError:
        return "missing"
    record = SlideRecord(problem=problem, message=message, bytes=size, modified=modified)
    write_table(folder, slide, grid, record, {})
    return problem
