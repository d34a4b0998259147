"""TILs: whether a tile of 100 x 100 pixels holds lymphocytes that infiltrate a tumour.

Source: Abousamra et al. 2022, doi 10.3389/fonc.2021.806603, and Saltz et al. 2018, doi
10.1016/j.celrep.2018.03.086; TCGA-TILs.tar.gz of https://zenodo.org/records/6604094, where its
licence stands. Tiles are at 0.5 microns per pixel.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.layout import find_root
from g2l_plugin.tasks.manifest_table import SPLITS, check_files, read_table, write_table

_METADATA = "images-tcga-tils-metadata.csv"
_SOURCE = "TCGA-TILs.tar.gz of https://zenodo.org/records/6604094, unpacked"
_COLUMNS = ("partition", "study", "barcode", "label", "path")


def prepare(download: Path, output: Path, cancer: str = "brca") -> Path:
    """Writes the manifest of the tiles of one cancer, in the official splits.

    The manifest's paths are relative to `download`, which is the root. The split is the official
    one (`partition`); where it puts a patient into two, that patient's tiles are kept in the later
    one alone, which leaves the official test split as it is, and that is said.

    Args:
        download: Folder that TCGA-TILs.tar.gz was unpacked into, or the folder TCGA-TILs in it.
        output: Folder for manifest.csv.
        cancer: TCGA's abbreviation, as in the column `study`, or `all`.

    Returns:
        The manifest.

    Raises:
        UserError: A part of the download is missing, or there are no tiles of the cancer.
    """
    root = find_root(download, [_METADATA, "images-tcga-tils"], _SOURCE, ["", "TCGA-TILs"])
    names = {name: name for name in _COLUMNS}
    table = read_table(root / _METADATA, names, _COLUMNS)
    # Should the download list its joint folder beside those of the cancers, each tile counts once.
    table = table[table["study"] != "pancancer"]
    if cancer != "all":
        studies = sorted(set(table["study"]))
        table = table[table["study"] == cancer]
        if table.empty:
            raise UserError(
                f"{root / _METADATA} has no tiles of {cancer!r}: expected all, or one of "
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
            f"The official split puts {manifest['patient'][shared].nunique():,} patients into two "
            f"splits: {shared.sum():,} of their tiles are left out, so that none is."
        )
    return manifest[~shared]
