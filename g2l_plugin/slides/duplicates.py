"""Which slides of a cohort are the same: those whose files have the same bytes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from g2l_plugin.files import hash_file
from g2l_plugin.slides.cohort import CohortSlide
from g2l_plugin.slides.tile_grid import SlideRecord


def hash_candidates(
    root: Path, cohort: Sequence[CohortSlide], records: Sequence[SlideRecord]
) -> list[SlideRecord]:
    """Adds the hash of their bytes to the records of slides that may be the same.

    OpenSlide's quickhash covers little more than the lowest level, and some slides have none: it
    can only rule out a duplicate, as the size can. Few slides agree in both, so few are read.
    """
    alike = Counter(_likeness(record) for record in records if not record.problem)
    return [
        dataclasses.replace(record, sha256=_hash_file(root / slide.slide))
        if not (record.problem or record.sha256) and alike[_likeness(record)] > 1
        else record
        for slide, record in zip(cohort, records, strict=True)
    ]


def mark_duplicates(
    root: Path, cohort: Sequence[CohortSlide], records: Sequence[SlideRecord]
) -> list[SlideRecord]:
    """Marks usable slides that have the same content as an earlier one.

    Args:
        root: The folder of the slides.
        cohort: The slides.
        records: The record of each, from `hash_candidates`.
    """
    marked = []
    first_with: dict[str, str] = {}
    for slide, record in zip(cohort, records, strict=True):
        if record.sha256 and not record.problem:
            first = first_with.setdefault(record.sha256, slide.slide)
            if first != slide.slide:
                message = f"Slide {root / slide.slide} has the same content as {first}."
                record = dataclasses.replace(record, problem="duplicate", message=message, tiles=0)
        marked.append(record)
    return marked


def _likeness(record: SlideRecord) -> tuple[int, str]:
    return record.bytes, record.quickhash


def _hash_file(path: Path) -> str:
    """SHA-256 of a file, or "" if the system does not give all of its bytes."""
    try:
        return hash_file(path)
    except OSError as error:
        logger.warning(f"Slide {path} may be a duplicate, but cannot be read: {error.strerror}.")
        return ""
