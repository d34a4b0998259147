"""IDC: invasive ductal carcinoma in breast tissue, in tiles of 50 x 50 pixels.

Source: Cruz-Roa et al. 2014 (doi 10.1117/12.2043872) and Janowczyk and Madabhushi 2016 (doi
10.4103/2153-3539.186902). The download is IDC_regular_ps50_idx5.zip from
http://www.andrewjanowczyk.com/use-case-6-invasive-ductal-carcinoma-idc-segmentation, which states
no licence, or the same files from
https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images. The slides were
scanned at 40x.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from g2l_plugin.datasets.download import relative
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError

_FOLDER = "IDC_regular_ps50_idx5"
_SOURCE = (
    f"{_FOLDER}.zip from http://www.andrewjanowczyk.com/use-case-6-invasive-ductal-carcinoma-idc-"
    "segmentation, unpacked: <patient>/0 and <patient>/1 with files such as "
    "10253_idx5_x1351_y1101_class0.png"
)
_NAME = re.compile(r"(?P<patient>\d+)_idx\d+_x\d+_y\d+_class(?P<label>[01])\.png")
_LABELS = ("0", "1")


def prepare(download: Path, output: Path, seed: int = 0) -> Path:
    """Writes the manifest of the tiles; label 1 is carcinoma and 0 is none.

    The root of the manifest's paths is `download`. The splits are drawn by patient, because the
    download has none.

    Args:
        download: The folder of the patients' folders, or the folder that contains it.
        output: Folder for manifest.csv.
        seed: Seed of the splits.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing.
    """
    # The Kaggle archive contains every patient twice, once in this folder.
    root = download / _FOLDER if (download / _FOLDER).is_dir() else download
    folders = sorted(path for path in root.glob("*") if path.is_dir() and path.name.isdecimal())
    if not folders:
        raise UserError(f"No patient folders in {root}. Expected {_SOURCE}.")
    rows = []
    for folder in tqdm(folders, desc="Listing tiles", unit="patient", leave=False):
        rows += _list_patient(folder, download)
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(output / "manifest.csv", table)


def _list_patient(folder: Path, download: Path) -> list[tuple[str, str, str]]:
    rows = []
    for label in _LABELS:
        for path in sorted((folder / label).glob("*.png")):
            name = _NAME.fullmatch(path.name)
            if name is None or name["label"] != label or name["patient"] != folder.name:
                raise UserError(f"{path} has an unexpected name. Expected {_SOURCE}.")
            rows.append((relative(path, download), label, folder.name))
    if not rows:
        raise UserError(f"{folder} has no tiles. Expected {_SOURCE}.")
    return rows
