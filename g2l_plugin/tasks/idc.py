"""IDC: invasive ductal carcinoma in tiles of 50 x 50 pixels of breast tissue.

Source: Cruz-Roa et al. 2014, doi 10.1117/12.2043872, and Janowczyk and Madabhushi 2016, doi
10.4103/2153-3539.186902; IDC_regular_ps50_idx5.zip of
http://www.andrewjanowczyk.com/use-case-6-invasive-ductal-carcinoma-idc-segmentation, or the
same files of https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images. The
former states no licence. The slides were scanned at 40x.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.layout import relative
from g2l_plugin.tasks.manifest_table import write_table
from g2l_plugin.tasks.splits import split_patients

_FOLDER = "IDC_regular_ps50_idx5"
_SOURCE = (
    f"{_FOLDER}.zip of http://www.andrewjanowczyk.com/use-case-6-invasive-ductal-carcinoma-idc-"
    "segmentation, unpacked: <patient>/0 and <patient>/1 with files as 10253_idx5_x1351_y1101_"
    "class0.png"
)
_NAME = re.compile(r"(?P<patient>\d+)_idx\d+_x\d+_y\d+_class(?P<label>[01])\.png")
_LABELS = ("0", "1")


def prepare(download: Path, output: Path, seed: int = 0) -> Path:
    """Writes the manifest of the tiles: label 0 without, 1 with carcinoma.

    The manifest's paths are relative to `download`, which is the root. The download has no splits:
    they are drawn, patients apart.

    Args:
        download: The folder of the patients' folders, or the one that holds it.
        output: Folder for manifest.csv.
        seed: Seed of the splits.

    Returns:
        The manifest.

    Raises:
        UserError: A part of the download is missing.
    """
    # The archive of Kaggle holds every patient twice, once within this folder.
    root = download / _FOLDER if (download / _FOLDER).is_dir() else download
    folders = sorted(path for path in root.glob("*") if path.is_dir() and path.name.isdecimal())
    if not folders:
        raise UserError(f"No patients' folders in {root}. Expected {_SOURCE}.")
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
                raise UserError(f"{path} is not named as expected. Expected {_SOURCE}.")
            rows.append((relative(path, download), label, folder.name))
    if not rows:
        raise UserError(f"{folder} holds no tiles. Expected {_SOURCE}.")
    return rows
