"""Which tiles are trained on, and which are for validation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from loguru import logger

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


def tiles_of_split(
    split: Split,
    patients: np.ndarray,
    group_sizes: np.ndarray,
    n_val_tiles: int,
    n_val_patients: int,
    seed: int,
) -> np.ndarray:
    """Holds patients out for validation, so that no training tile is theirs.

    The tiles of a single patient are divided between training and validation instead.

    Args:
        split: Whose tiles to return.
        patients: The patient of each group of tiles (of a slide or an image), (groups,).
        group_sizes: Tiles of each group, in the order of their numbers, (groups,).
        n_val_tiles: Tiles for validation, at most those of the held-out patients.
        n_val_patients: Patients to hold out, at most a tenth of all; but two of eight patients, and
            one of two.
        seed: Seed of the choice.

    Returns:
        Numbers of the split's tiles, ascending, int64.

    Examples:
        >>> import numpy as np
        >>> from g2l_plugin.slides.split import tiles_of_split
        >>> patients = np.array(["ann", "bob", "ann"])
        >>> tiles_of_split("train", patients, np.array([2, 3, 1]), 9, 1, seed=0)
        array([2, 3, 4])
        >>> tiles_of_split("val", patients, np.array([2, 3, 1]), 9, 1, seed=0)
        array([0, 1, 5])
    """
    rng = np.random.default_rng(seed)
    n_tiles = int(group_sizes.sum())
    names = rng.permutation(np.unique(patients[group_sizes > 0]))
    wanted = n_val_patients if n_val_tiles else 0
    n_held_out = min(wanted, _most_val_patients(len(names)))
    # By group first: the names of ten million tiles would take gigabytes.
    held_out = np.repeat(np.isin(patients, names[:n_held_out]), group_sizes)  # (tiles,)
    if wanted and not n_held_out:
        logger.warning(
            f"All {n_tiles:,} tiles are of one patient, or of unknown ones: validation uses a "
            "tenth of them, and says little about other patients."
        )
        held_out[rng.permutation(n_tiles)[: n_tiles // 10]] = True
    if split == "val":
        return np.sort(rng.permutation(np.flatnonzero(held_out))[:n_val_tiles])
    return np.flatnonzero(~held_out)


def _most_val_patients(n_patients: int) -> int:
    """How many of a cohort's patients may be held out."""
    return max(n_patients // 10, min(n_patients // 4, 2), min(n_patients // 2, 1))
