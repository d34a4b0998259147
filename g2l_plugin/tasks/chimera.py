"""CHIMERA, task 1: biochemical recurrence after prostatectomy, from slides of the prostate.

Source: https://chimera.grand-challenge.org (MICCAI 2025), CC BY-NC-SA 4.0; patients of Radboudumc,
several slides each, 0.25 microns per pixel. The challenge predicts the time to recurrence; here
the label is whether there was one (`BCR`) during follow-up, whose months the manifest keeps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.layout import find_root, relative
from g2l_plugin.tasks.manifest_table import write_table
from g2l_plugin.tasks.splits import split_patients

_SOURCE = (
    "task 1 as `aws s3 sync --no-sign-request s3://chimera-challenge/v2/task1/ task1` fetches it "
    "(https://chimera.grand-challenge.org/dataset-download)"
)
_CLINICAL = "clinical_data"
_SLIDES = "pathology/images"
_TIME = "time_to_follow-up/BCR"
_LABELS = {0: "no recurrence", 1: "recurrence"}


def prepare(download: Path, output: Path, seed: int = 0) -> Path:
    """Writes the manifest of slides for eva's `WsiClassificationDataset`.

    The manifest's paths are relative to `download`, which is the root. Its columns are path, target
    (1 is recurrence), split, patient, centre, slide, label and months. The challenge's own test set
    is not public: splits are drawn, patients apart.

    Args:
        download: The folder task1, or the one that holds it.
        output: Folder for manifest.csv.
        seed: Seed of the splits.

    Returns:
        The manifest.

    Raises:
        UserError: A part of the download is missing, or says no outcome.
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
            raise UserError(f"{folder} holds no slides. Expected {_SOURCE}.")
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
        missing, n_missing, what = f"{_CLINICAL}/{without[0]}.json", len(without), "files"
    elif without := sorted(clinical - folders):
        missing, n_missing, what = f"{_SLIDES}/{without[0]}", len(without), "folders of slides"
    else:
        return
    raise UserError(
        f"{root / missing} is missing, one of {n_missing} {what} that are. Expected {_SOURCE}."
    )


def _read_outcome(path: Path) -> tuple[int, float]:
    """Whether there was a recurrence, 0 or 1, and the months until it or of follow-up."""
    try:
        clinical = json.loads(path.read_text(encoding="utf-8"))
        recurrence, months = float(clinical["BCR"]), float(clinical[_TIME])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say whether there was a recurrence, and when ({error!r}): expected "
            f"'BCR' and {_TIME!r}. Fetch it again: {_SOURCE}."
        ) from error
    if recurrence not in _LABELS:
        raise UserError(f"{path} says BCR {recurrence:g}: expected 0 or 1.")
    return int(recurrence), months
