"""Cohorts for measuring: copies of a few real slides under other names."""

import argparse
import os
import shutil
from pathlib import Path

from g2l_plugin.demo.cohort import make_cohort
from g2l_plugin.slides.cohort import SLIDE_SUFFIXES


def add_slides_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slides",
        type=Path,
        default=os.environ.get("G2L_SLIDES"),
        help="folder of slides to copy (G2L_SLIDES); without it, slides of the demo cohort",
    )


def copy_slides(source: Path | None, target: Path, n_slides: int, link: bool = False) -> Path:
    """Fills a folder with `n_slides` copies, or hard links, in turn of the slides of a folder."""
    if source is None:
        make_cohort(target.parent / "demo", n_slides=4)
        source = target.parent / "demo" / "slides"
    originals = sorted(p for p in source.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)
    target.mkdir(parents=True)
    first: dict[Path, Path] = {}
    for number in range(n_slides):
        original = originals[number % len(originals)]
        copy = target / f"{number:04d}-{original.name.replace('TCGA', 'copy')}"
        if link and original in first:
            os.link(first[original], copy)
        else:
            shutil.copy(original, copy)
            first[original] = copy
    return target
