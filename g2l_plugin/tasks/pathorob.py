"""PathoROB: biological classes, each from several medical centres, to measure robustness on.

Source: Kömen et al. 2025, arXiv 2507.17845; the datasets PathoROB-camelyon (CC0 1.0), PathoROB-tcga
(CC BY-NC-SA 4.0) and PathoROB-tolkach_esca (CC BY-SA 4.0) of https://huggingface.co/bifold-pathomics,
parquet with the columns image, slide_id, patch_id, biological_class and medical_center.

The robustness index of the paper is of some of the tiles only. Files that list them are in
`data/metadata` of https://github.com/bifold-pathomics/PathoROB: camelyon.csv, tcga_4x4.csv or
tcga_2x2.csv, and tolkach_esca_reduced.csv; their rows of the subset OOD do not count.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.manifest_table import read_table, write_table
from g2l_plugin.tasks.shards import find_shards, read_rows, write_picture
from g2l_plugin.tasks.splits import split_patients

_COLUMNS = ("image", "slide_id", "patch_id", "biological_class", "medical_center")
_SOURCE = (
    "a dataset of https://huggingface.co/bifold-pathomics, as `hf download --repo-type dataset "
    "bifold-pathomics/PathoROB-camelyon --local-dir FOLDER` fetches it"
)
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}")
_CAMELYON17 = re.compile(r"patient_\d+(?=_node_\d+)")


def prepare(download: Path, output: Path, metadata: Path | None = None, seed: int = 0) -> Path:
    """Writes the tiles as they are, and their manifest.

    The root is `output`. The label is the biological class and the centre the medical centre. There
    are no official splits of tiles: they are drawn, patients apart; the robustness index is taken
    over all of them.

    Args:
        download: Folder of one of the datasets.
        output: Folder for `tiles/` and manifest.csv. What is there already is not written again.
        metadata: PathoROB's list of the tiles to take, such as tolkach_esca_reduced.csv; None takes
            all.
        seed: Seed of the splits.

    Returns:
        The manifest.

    Raises:
        UserError: A part of the download is missing, or a tile of the list is not in it.
    """
    shards = find_shards(download, _COLUMNS, _SOURCE)
    wanted = None if metadata is None else _read_wanted(metadata)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    rows = []
    for tile in read_rows(shards, _COLUMNS):
        if wanted is None or (str(tile["slide_id"]), str(tile["patch_id"])) in wanted:
            rows.append(_write_tile(tile, output))
    if wanted is not None and len(rows) < len(wanted):
        raise UserError(
            f"{len(wanted) - len(rows):,} of {len(wanted):,} tiles of {metadata} are not in "
            f"{download}. Give the list of the same dataset, or fetch all of it: {_SOURCE}."
        )
    table = pd.DataFrame(rows)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(manifest, table)


def _read_wanted(metadata: Path) -> set[tuple[str, str]]:
    """Slide and patch of the tiles that the robustness index is of."""
    names = {"path": "patch_id", "slide": "slide_id", "subset": "subset"}
    table = read_table(metadata, names, list(names))
    table = table[table["subset"] != "OOD"]
    if table.empty:
        raise UserError(f"{metadata} lists no tiles. Expected PathoROB's data/metadata/*.csv.")
    return set(zip(table["slide"], table["path"], strict=True))


def _write_tile(tile: dict[str, Any], output: Path) -> dict[str, str]:
    slide_id, centre = str(tile["slide_id"]), str(tile["medical_center"])
    patient, slide = _identify(slide_id, centre)
    stem = Path("tiles") / _safe(slide) / _safe(str(tile["patch_id"]))
    name = write_picture(tile["image"]["bytes"], output, stem, _SOURCE)
    return {
        "path": name.as_posix(),
        "label": str(tile["biological_class"]),
        "patient": patient,
        "slide": slide,
        "centre": centre,
    }


def _identify(slide_id: str, centre: str) -> tuple[str, str]:
    """Patient and slide; a case number is a patient of its centre."""
    if match := _TCGA.match(slide_id) or _CAMELYON17.match(slide_id):
        return match[0], slide_id
    name = f"{centre}_{slide_id}"
    return name, name


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
