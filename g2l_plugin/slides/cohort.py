"""Which slides: all of a folder, or a seeded choice among them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from g2l_plugin.errors import UserError

SLIDE_SUFFIXES = frozenset(
    {
        ".bif",
        ".czi",
        ".dcm",
        ".mrxs",
        ".ndpi",
        ".scn",
        ".svs",
        ".svslide",
        ".tif",
        ".tiff",
        ".vms",
        ".vmu",
    }
)
"""File name endings of the formats that OpenSlide reads."""


def select_slides(
    root: str | Path,
    file_paths: Sequence[str] | None = None,
    n_slides: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Lists the slides of a cohort.

    Args:
        root: The folder of the slides; searched with its subfolders when `file_paths` is None.
        file_paths: Paths relative to `root`, for a cohort that is written down.
        n_slides: How many to keep, chosen with `seed`; None, or more than there are, keeps all.
        seed: Seed of the choice.

    Returns:
        The paths, sorted: the same for the same folder, seed and number.

    Raises:
        UserError: The folder is missing or holds no slide, or a named slide is missing.
    """
    root = Path(root).expanduser()
    if file_paths is None:
        if not root.is_dir():
            raise UserError(
                f"Slide folder {root} does not exist. Set `root` of the dataset "
                "(SLIDES_ROOT=/path/to/slides) to the folder of your slides."
            )
        paths = [p for p in root.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file()]
    else:
        paths = [root / name for name in file_paths]
        missing = [str(p) for p in paths if not p.is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(paths)} slides are missing, first {missing[0]}."
            )
    if not paths:
        raise UserError(
            f"No slides in {root}. Expected files that end in {', '.join(sorted(SLIDE_SUFFIXES))}."
        )
    paths.sort()
    if n_slides is not None and n_slides < len(paths):
        paths = sorted(random.Random(seed).sample(paths, n_slides))
    return paths
