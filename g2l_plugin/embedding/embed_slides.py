"""Embeds whole slides: the tiles of each on tissue, with one model, into one file a slide."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from g2l_plugin import __version__
from g2l_plugin.embedding.model import TileModel
from g2l_plugin.embedding.on_cluster import embed_on_cluster
from g2l_plugin.embedding.outcome import (
    TABLE,
    EmbeddedSlide,
    check_losses,
    check_names,
    part_table,
    slide_id,
    write_table,
)
from g2l_plugin.embedding.slide_file import (
    Settings,
    read_attributes,
    refuse_others,
    write_file,
)
from g2l_plugin.embedding.slides_given import find_slides
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.files import locked, printable
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.runs.model_names import find_source
from g2l_plugin.slides.cohort import CohortSlide, read_cohort
from g2l_plugin.slides.in_order import read_in_order
from g2l_plugin.slides.index import Index, SlideIndex
from g2l_plugin.slides.slide import SlideError, open_for
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.tile_grid import SlideRecord
from g2l_plugin.transfer import start_copy

_MAX_WORKERS = 16
"""Processes that read tiles, if nobody says otherwise: more than a GPU can follow."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """A slide to embed: its place in the cohort, record, tiles, and what identifies these."""

    slide: CohortSlide
    record: SlideRecord
    tiles: SlideIndex
    tiles_sha256: str


def embed_slides(
    model: str | EncoderSource,
    slides: str | Path,
    output: str | Path,
    *,
    root: str | Path | None = None,
    tile_size: int | None = None,
    target_mpp: float | None = None,
    overwrite_mpp: float | None = None,
    min_tissue: float | None = None,
    min_sharpness: float | None = None,
    reader: str | None = None,
    layout: str = "trident",
    dtype: str = "float32",
    precision: str = "32-true",
    accelerator: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    scheduler: str | None = None,
    max_lost: float = 0.01,
) -> list[EmbeddedSlide]:
    """Embeds the tiles of whole slides, and writes one HDF5 file a slide.

    All slides are taken. Those that cannot be read are counted, and the others go on; so are tiles,
    which are left out. A slide whose file is there and whose tiles are the same is not embedded
    again, so a stopped call continues when it is made again. The rows of a file are in the order of
    the slide's tile table in the index.

    Args:
        model: What people call a model (see `find_source`), or a source with its settings.
        slides: A folder of slides, one slide, a list of slides as `choose_cohort` takes it, or an
            index that `g2l index` made. Unless it is an index, one is made in `output`/index.
        output: Folder of the files: `<slide id>.h5`, the slide's file name without ending, and
            `embeddings.csv`.
        root: Folder of the slides of a list; None takes the list's own.
        tile_size: Side of the tiles, in pixels; None takes 224, or an index's own. Tiles are
            resized to the model's input size where it differs.
        target_mpp: Microns per pixel of the tiles; None takes 0.5, or an index's own.
        overwrite_mpp: Microns per pixel of slides whose metadata has none.
        min_tissue: Smallest share of a tile that must be tissue, 0 to 1.
        min_sharpness: Smallest sharpness of a tile; 0 keeps tiles out of focus too.
        reader: `auto` or `openslide`, see `TileGrid`.
        layout: `trident` (and CLAM) or `stamp`, see `slide_file`.
        dtype: What embeddings are stored as: float32 or float16.
        precision: 32-true, or bf16-mixed.
        accelerator: `cpu`, `cuda`, or `auto`: CUDA if there is a GPU. One call uses one GPU.
        batch_size: Tiles per batch. A batch has tiles of one slide.
        workers: Processes that read; None starts one per CPU core, at most 16 for tiles.
        shard: (i, n), with i from 1 to n, embeds only every n-th slide, for n machines or GPUs that
            share `output`.
        scheduler: Address of a Dask scheduler whose workers index and embed, as tcp://host:8786.
            All must see the slides, the output and a model's folder under the same names. None uses
            this machine.
        max_lost: Largest share of slides, and of tiles, that may be unreadable.

    Returns:
        What became of each slide, as in `embeddings.csv`.

    Raises:
        UserError: `output` has embeddings of another model or of other settings, two slides have
            the same file name, the cluster cannot be used, or more than `max_lost` is lost. In the
            last case all files are written.

    Examples:
        >>> import h5py
        >>> from g2l_plugin import embed_slides
        >>> from g2l_plugin.demo.generate import make_cohort
        >>> _ = make_cohort("demo", n_slides=2, size=512, show_progress=False)
        >>> slides = embed_slides("demo:teacher", "demo/slides", "features", tile_size=56)
        >>> [(slide.slide_id, slide.status) for slide in slides]
        [('east-001', 'embedded'), ('north-000', 'embedded')]
        >>> with h5py.File("features/east-001.h5") as file:
        ...     file["features"].shape == (slides[0].tiles, 192), file["coords"].shape[1]
        (True, 2)
    """
    if batch_size < 1 or (workers or 0) < 0:
        raise UserError(
            f"{batch_size} tiles per batch (--batch-size) and {workers} processes (--workers): "
            "expected 1 tile or more, and no negative number."
        )
    given = find_slides(
        slides,
        root,
        tile_size=tile_size,
        target_mpp=target_mpp,
        overwrite_mpp=overwrite_mpp,
        min_tissue=min_tissue,
        min_sharpness=min_sharpness,
        reader=reader,
    )
    folder = Path(output).expanduser()
    source = EncoderSource(find_source(model)) if isinstance(model, str) else model
    table = folder / (part_table(shard) if shard else TABLE)
    if scheduler is not None:
        with locked(folder / ".lock"):
            index = given.index(folder / "index", None, workers, scheduler)
            check_names(read_cohort(index.folder / "cohort.csv"))
        how = {
            "layout": layout,
            "dtype": dtype,
            "precision": precision,
            "accelerator": accelerator,
            "batch_size": batch_size,
            "workers": workers,
        }
        rows = embed_on_cluster(embed_slides, index, given.root, source, folder, scheduler, how)
    else:
        network = TileModel(source, given.grid, precision, accelerator)
        settings = Settings(**network.settings(), layout=layout, dtype=dtype)
        refuse_others(folder, settings, network.source)
        with locked(folder / ".lock", shard and shard[0]):
            index = given.index(folder / "index", shard, workers)
            check_names(read_cohort(index.folder / "cohort.csv"))
            readers = min(usable_cpus(), _MAX_WORKERS) if workers is None else workers
            rows = _embed_index(index, folder, network, settings, batch_size, readers)
    write_table(table, rows)
    check_losses(rows, max_lost, table)
    return rows


def _embed_index(
    index: Index,
    folder: Path,
    network: TileModel,
    settings: Settings,
    batch_size: int,
    workers: int,
) -> list[EmbeddedSlide]:
    """Embeds the slides of an index whose files are not there, or are of other tiles."""
    tables = dict(zip(index.used(), index.load(), strict=True))
    rows: dict[str, EmbeddedSlide] = {}
    jobs = []
    for slide, record in zip(index.cohort, index.records, strict=True):
        path = folder / f"{slide_id(slide.slide)}.h5"
        if slide not in tables:
            rows[slide.slide] = _row(slide, 0, record.damaged, record.outcome, record.message)
            if record.problem not in ("missing", "cannot be opened"):
                path.unlink(missing_ok=True)  # of what the slide was before
            continue
        job = _Job(slide, record, tables[slide], _identify(tables[slide]))
        found = read_attributes(path) or {}
        if found.get("tiles_sha256") == job.tiles_sha256 and found["n_tiles"] == record.tiles:
            rows[slide.slide] = _row(slide, record.tiles, record.damaged)
        else:
            jobs.append(job)
    done = sum(row.tiles for row in rows.values())
    progress = tqdm(
        desc="Embedding tiles",
        total=done + sum(job.record.tiles for job in jobs),
        initial=done,
        unit="tile",
        dynamic_ncols=True,
    )
    with progress:
        for job, kept, embeddings in _embed_jobs(jobs, network, batch_size, workers, progress):
            path = folder / f"{slide_id(job.slide.slide)}.h5"
            rows[job.slide.slide] = _write(path, job, kept, embeddings, network, settings)
    return [rows[slide.slide] for slide in index.cohort]


def _embed_jobs(
    jobs: Sequence[_Job], network: TileModel, batch_size: int, workers: int, progress: tqdm
) -> Iterator[tuple[_Job, np.ndarray, np.ndarray]]:
    """Yields each slide with the tiles that could be read, by position, and their embeddings."""
    size = network.tile_size, network.tile_size
    tiles = SlideTiles([job.tiles for job in jobs], size, max_open_slides=2)
    spans = [tiles.span(number) for number in range(len(jobs))]
    blocks = [
        [np.arange(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]
        for start, stop in spans
    ]
    flat = [block for of_slide in blocks for block in of_slide]
    batches = read_in_order(tiles, size, flat, min(workers, len(flat)))
    for job, (start, _), of_slide in zip(jobs, spans, blocks, strict=True):
        kept: list[np.ndarray] = []
        copies: list[Callable[[], torch.Tensor]] = []
        for block in of_slide:
            numbers, images = next(batches)
            if len(numbers):
                kept.append(numbers - start)
                copies.append(start_copy(network.embed(images)))
            progress.update(len(block))
        empty = np.empty((0, network.embedding_dim), np.float32)
        embeddings = np.concatenate([empty, *(read().numpy() for read in copies)])
        yield job, np.concatenate([np.empty(0, np.int64), *kept]), embeddings


def _write(
    path: Path,
    job: _Job,
    kept: np.ndarray,
    embeddings: np.ndarray,
    network: TileModel,
    settings: Settings,
) -> EmbeddedSlide:
    """Writes a slide's file, unless the slide has gone; returns its row."""
    slide, record = job.slide, job.record
    lost = record.damaged + record.tiles - len(kept)
    if len(kept) < record.tiles:
        path.unlink(missing_ok=True)
        try:
            open_for(job.tiles.path, job.tiles.plan).close()
        except SlideError as error:
            return _row(slide, 0, lost, error.problem, str(error))
        if not len(kept):
            return _row(slide, 0, lost, "damaged")
    with np.errstate(over="ignore"):
        stored = embeddings.astype(settings.dtype)
    if not np.isfinite(stored).all():
        raise UserError(
            f"Embeddings of {slide.slide} by {network.source} are not finite in "
            f"{settings.precision} and {settings.dtype}. Check the model, or use --precision "
            "32-true and --dtype float32."
        )
    facts = network.facts() | {
        "slide": printable(slide.slide),
        "tiles_sha256": job.tiles_sha256,
        "lost_tiles": lost,
        "g2l_version": __version__,
    }
    write_file(path, stored, job.tiles.xy[kept], record, settings, facts)
    return _row(slide, len(kept), lost)


def _row(
    slide: CohortSlide,
    tiles: int,
    lost: int,
    status: str = "embedded",
    reason: str = "",
) -> EmbeddedSlide:
    reason = reason or (f"{lost:,} tiles cannot be read." if lost else "")
    name = slide_id(slide.slide)
    return EmbeddedSlide(name, slide.slide, slide.patient, tiles, lost, status, reason)


def _identify(slide: SlideIndex) -> str:
    """SHA-256 of what decides the pixels of a slide's tiles: its size, the plan, the places."""
    digest = hashlib.sha256(f"{slide.bytes} {slide.plan}".encode())
    digest.update(slide.xy.tobytes())
    return digest.hexdigest()
