"""Embeds the slides of an index on a Dask cluster, a few at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from g2l_plugin.embedding.outcome import EmbeddedSlide, part_table
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.parallel.failures import WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs
from g2l_plugin.runs.model_names import absolute_source
from g2l_plugin.slides.index import Index

_PART_SLIDES = 8
"""Slides that a worker embeds before it loads the model again: at 10,000 tiles a slide, a GPU works
on them for minutes."""

Embed = Callable[..., list[EmbeddedSlide]]
"""`embed_slides`."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """Every n-th slide of an index, from the i-th on."""

    embed: Embed
    model: EncoderSource
    index: Path
    root: Path
    output: Path
    shard: tuple[int, int]
    settings: Mapping[str, Any]


def embed_on_cluster(
    embed: Embed,
    index: Index,
    root: Path,
    model: EncoderSource,
    output: Path,
    scheduler: str,
    settings: Mapping[str, Any],
) -> list[EmbeddedSlide]:
    """Embeds an index in parts. If a worker dies, another goes on with its part.

    Args:
        embed: Embeds a part, as `embed_slides`.
        index: The index, which is complete.
        root: Folder of its slides.
        model: The model.
        output: Folder for the files, which is there.
        scheduler: Address of the scheduler.
        settings: Further arguments of `embed`.

    Returns:
        What became of each slide, in the order of the index.

    Raises:
        UserError: The cluster cannot be used, or a part killed its worker again and again.
    """
    n_parts = -(-len(index.cohort) // _PART_SLIDES)
    shards = [(number, n_parts) for number in range(1, n_parts + 1)]
    model = dataclasses.replace(model, source=absolute_source(model.source))
    needs = folder, slides, target = (
        index.folder.absolute(),
        root.absolute(),
        output.absolute(),
    )
    parts = [_Part(embed, model, folder, slides, target, shard, settings) for shard in shards]
    rows: dict[str, EmbeddedSlide] = {}
    n_failed = 0
    progress = tqdm(desc="Embedding slides", total=len(index.cohort), unit="slide")
    outcomes = run_jobs(_embed_part, parts, scheduler=scheduler, needs=needs)
    with progress, contextlib.closing(outcomes):
        for _, outcome in outcomes:
            if isinstance(outcome, WorkerCrash):
                n_failed += 1
                continue
            rows |= {row.slide: row for row in outcome}
            progress.update(len(outcome))
    if n_failed:
        raise UserError(
            f"{n_failed:,} of {n_parts:,} parts killed each worker that tried them: see what the "
            "workers logged, and their memory. The same command embeds what is missing."
        )
    for shard in shards:
        (output / part_table(shard)).unlink(missing_ok=True)
    return [rows[slide.slide] for slide in index.cohort]


def _embed_part(part: _Part) -> list[EmbeddedSlide]:
    settings = dict(part.settings)
    if multiprocessing.current_process().daemon:  # such a process may start no others
        settings["workers"] = 0
    return part.embed(
        part.model,
        part.index,
        part.output,
        root=part.root,
        shard=part.shard,
        max_lost=1.0,  # judged over all parts
        **settings,
    )
