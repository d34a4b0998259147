"""CHIMERA task 1: biochemical recurrence after prostatectomy, from prostate slides.

Source: https://chimera.grand-challenge.org (MICCAI 2025), licence CC BY-NC-SA 4.0. The patients
are from Radboudumc, with several slides each at 0.25 microns per pixel. The challenge predicts the
time to recurrence. Here the label is whether a recurrence (`BCR`) occurred during follow-up; the
manifest keeps the months.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.datasets.download import find_root, relative
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError

_SOURCE = (
    "task 1, from `aws s3 sync --no-sign-request s3://chimera-challenge/v2/task1/ task1` "
    "(https://chimera.grand-challenge.org/dataset-download)"
)
_CLINICAL = "clinical_data"
_SLIDES = "pathology/images"
_TIME = "time_to_follow-up/BCR"
_LABELS = {0: "no recurrence", 1: "recurrence"}


def prepare(download: Path, output: Path, seed: int = 0) -> Path:
    """Writes a manifest of slides for eva's `WsiClassificationDataset`.

    The root of the manifest's paths is `download`. The columns are path, target (1 is recurrence),
    split, patient, centre, slide, label and months. The splits are drawn by patient, because the
    challenge's test set is not public.

    Args:
        download: The folder task1, or the folder that contains it.
        output: Folder for manifest.csv.
        seed: Seed of the splits.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, or a patient has no outcome.
    """
    root = find_root(download, [_CLINICAL, _SLIDES], _SOURCE, ["", "task1"])
    clinical = {path.stem: path for path in sorted((root / _CLINICAL).glob("*.json"))}
    folders = {path.name: path for path in sorted((root / _SLIDES).glob("*")) if path.is_dir()}
    _check_patients(root, set(clinical), set(folders))
    rows: list[dict[str, Any]] = []
    for patient, folder in folders.items():
        recurrence, months = _read_outcome(clinical[patient])
        slides = [path for path in folder.glob("*.tif") if not path.stem.endswith("_tissue")]
        if not slides:
            raise UserError(f"{folder} has no slides. Expected {_SOURCE}.")
        rows += [
            {
                "path": relative(path, download),
                "target": recurrence,
                "patient": patient,
                "centre": "Radboudumc",
                "slide": path.stem,
                "label": _LABELS[recurrence],
                "months": months,
            }
            for path in sorted(slides)
        ]
    table = pd.DataFrame(rows)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(output / "manifest.csv", table)


def _check_patients(root: Path, clinical: set[str], folders: set[str]) -> None:
    if without := sorted(folders - clinical):
        missing, n_missing, kind = f"{_CLINICAL}/{without[0]}.json", len(without), "files"
    elif without := sorted(clinical - folders):
        missing, n_missing, kind = f"{_SLIDES}/{without[0]}", len(without), "slide folders"
    else:
        return
    raise UserError(
        f"{root / missing} is missing, one of {n_missing} missing {kind}. Expected {_SOURCE}."
    )


def _read_outcome(path: Path) -> tuple[int, float]:
    """Reads the recurrence, 0 or 1, and the months until it or until the end of follow-up."""
    try:
        clinical = json.loads(path.read_text(encoding="utf-8"))
        recurrence, months = float(clinical["BCR"]), float(clinical[_TIME])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no readable outcome ({error!r}). Expected numbers in 'BCR' and "
            f"{_TIME!r}. Download it again: {_SOURCE}."
        ) from error
    if recurrence not in _LABELS:
        raise UserError(f"{path} has a BCR of {recurrence:g}. Expected 0 or 1.")
    return int(recurrence), months
