"""TILs: tumour-infiltrating lymphocytes, present or absent in tiles of 100 x 100 pixels.

Source: Abousamra et al. 2022 (doi 10.3389/fonc.2021.806603) and Saltz et al. 2018 (doi
10.1016/j.celrep.2018.03.086). The download is TCGA-TILs.tar.gz from
https://zenodo.org/records/6604094, which states its licence. Tiles have 0.5 microns per pixel.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from loguru import logger

from g2l_plugin.datasets.download import find_root
from g2l_plugin.datasets.manifest_table import SPLITS, check_files, read_table, write_table
from g2l_plugin.errors import UserError

_METADATA = "images-tcga-tils-metadata.csv"
_SOURCE = "TCGA-TILs.tar.gz from https://zenodo.org/records/6604094, unpacked"
_COLUMNS = ("partition", "study", "barcode", "label", "path")


def prepare(download: Path, output: Path, cancer: str = "brca") -> Path:
    """Writes the manifest of the tiles of one cancer, in the official splits.

    The root of the manifest's paths is `download`. The splits are the official ones (`partition`).
    If a patient is in two of them, only the tiles of the later split are kept and a warning is
    logged; the official test split stays complete.

    Args:
        download: Folder that TCGA-TILs.tar.gz was unpacked into, or the folder TCGA-TILs in it.
        output: Folder for manifest.csv.
        cancer: TCGA's abbreviation as in the column `study`, or `all`.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, or the cancer has no tiles.
    """
    root = find_root(download, [_METADATA, "images-tcga-tils"], _SOURCE, ["", "TCGA-TILs"])
    names = {name: name for name in _COLUMNS}
    table = read_table(root / _METADATA, names, _COLUMNS)
    # The list may repeat the cancers' tiles under `pancancer`; each tile counts once.
    table = table[table["study"] != "pancancer"]
    if cancer != "all":
        studies = sorted(set(table["study"]))
        table = table[table["study"] == cancer]
        if table.empty:
            raise UserError(
                f"{root / _METADATA} has no tiles of {cancer!r}. Expected all, or one of "
                f"{', '.join(studies)}."
            )
    check_files(root, table["path"])
    barcode = table["barcode"].str.extract(r"^(?P<patient>TCGA-(?P<centre>\w{2})-\w{4})")
    prefix = root.relative_to(download)
    manifest = pd.DataFrame(
        {
            "path": [(prefix / path).as_posix() for path in table["path"]],
            "label": table["label"],
            "split": table["partition"],
            "patient": barcode["patient"].fillna(table["barcode"]),
            "centre": barcode["centre"].fillna(""),
            "cancer": table["study"],
        }
    )
    return write_table(output / "manifest.csv", _keep_apart(manifest))


def _keep_apart(manifest: pd.DataFrame) -> pd.DataFrame:
    rank = manifest["split"].map({split: number for number, split in enumerate(SPLITS)})
    last = rank.groupby(manifest["patient"]).transform("max")
    if (shared := rank < last).any():
        logger.warning(
            f"{manifest['patient'][shared].nunique():,} patients are in two official splits: "
            f"{shared.sum():,} of their tiles are left out, so that each patient is in one split."
        )
    return manifest[~shared]
