"""Checks of the slides, or of the packed tiles."""

from __future__ import annotations

import os
import time
from pathlib import Path

from g2l_plugin.doctor.finding import Finding, ok, problem, warning
from g2l_plugin.errors import UserError
from g2l_plugin.planning.settings import Settings
from g2l_plugin.slides.slide import SlideError, open_slide, slide_mpp
from g2l_plugin.slides.slide_list import SLIDE_SUFFIXES, is_slide, read_slide_list

_MAX_SLIDES = 5000
"""Slides after which no more are counted: a large archive."""

_MAX_SECONDS = 10.0
"""Seconds after which no more are counted: a slow disk."""


def check_slides(settings: Settings) -> list[Finding]:
    """Whether there are slides, and the first one can be read."""
    if settings.packed_root is not None:
        return [judge_packed(settings.packed_root)]
    findings = judge_slides(settings, is_named="SLIDES_ROOT" in os.environ)
    if settings.slides is not None:
        try:
            listed = read_slide_list(settings.slides)
            findings.append(ok(f"The list SLIDES={settings.slides} names {len(listed):,} slides."))
        except UserError as error:
            findings.append(problem(str(error), "Correct SLIDES."))
    return findings


def judge_packed(root: str) -> Finding:
    """Judges the folder of packed tiles; one in an object store is left to the run."""
    if "://" in root:
        return ok(f"Tiles are read from PACKED_ROOT={root}, which is not looked into here.")
    if not (Path(root).expanduser() / "pack.json").is_file():
        return problem(
            f"PACKED_ROOT={root} holds no packed tiles: there is no pack.json.",
            f"g2l pack INDEX {root}, or unset PACKED_ROOT",
        )
    return ok(f"Tiles are read from PACKED_ROOT={root}.")


def judge_slides(settings: Settings, is_named: bool) -> list[Finding]:
    """Judges the folder of slides.

    Args:
        settings: The run.
        is_named: Whether the user has named the folder; the config's default need not be there.
    """
    root = settings.slides_root
    if not root.is_dir():
        advice = "Set SLIDES_ROOT=/path/to/slides before the command."
        if not is_named:
            return [warning(f"SLIDES_ROOT is not set, and the default {root} is not here.", advice)]
        return [problem(f"SLIDES_ROOT={root} is not a folder.", advice)]
    found, is_complete = _find_slides(root)
    if not found:
        return [
            problem(
                f"SLIDES_ROOT={root} has no slides in it or below.",
                f"Expected are files that end in {', '.join(sorted(SLIDE_SUFFIXES))}.",
            )
        ]
    n_slides = f"{len(found):,}{'' if is_complete else ' or more'} slide{'s' * (len(found) != 1)}"
    fact = f"{n_slides} in {root}"
    first = min(found)
    try:
        with open_slide(first) as slide:
            width, height = slide.dimensions
            mpp = slide_mpp(slide, first, settings.overwrite_mpp)
    except SlideError as error:
        # One bad slide among many is left out by the run.
        return [warning(f"{fact}. {error}")]
    return [ok(f"{fact}; {first.name} has {width:,} x {height:,} px of {mpp:.3g} µm.")]


def _find_slides(root: Path) -> tuple[list[Path], bool]:
    """The slides in a folder and below it, as the run finds them, and whether they are all."""
    found: list[Path] = []
    end = time.monotonic() + _MAX_SECONDS
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [Path(folder, f) for f in files if is_slide(f) and not f.startswith(".")]
        if len(found) >= _MAX_SLIDES or time.monotonic() > end:
            return found, False
    return found, True
