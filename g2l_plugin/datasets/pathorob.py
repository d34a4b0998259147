"""PathoROB: biological classes from several medical centres, to measure robustness.

Source: Kömen et al. 2025 (arXiv 2507.17845). The datasets PathoROB-camelyon (CC0 1.0),
PathoROB-tcga (CC BY-NC-SA 4.0) and PathoROB-tolkach_esca (CC BY-SA 4.0) are parquet files at
https://huggingface.co/bifold-pathomics with the columns image, slide_id, patch_id,
biological_class and medical_center.

The paper computes its robustness index on a part of the tiles. The lists of these tiles are in
`data/metadata` of https://github.com/bifold-pathomics/PathoROB: camelyon.csv, tcga_4x4.csv or
tcga_2x2.csv, and tolkach_esca_reduced.csv. Their rows of the subset OOD do not count.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.datasets.download import find_shards, read_rows, safe_name, write_image
from g2l_plugin.datasets.manifest_table import read_table, write_table
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError

_COLUMNS = ("image", "slide_id", "patch_id", "biological_class", "medical_center")
_SOURCE = (
    "a dataset of https://huggingface.co/bifold-pathomics, downloaded with `hf download "
    "--repo-type dataset bifold-pathomics/PathoROB-camelyon --local-dir FOLDER`"
)
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}")
_CAMELYON17 = re.compile(r"patient_\d+(?=_node_\d+)")


def prepare(download: Path, output: Path, metadata: Path | None = None, seed: int = 0) -> Path:
    """Writes the tiles unchanged, and their manifest.

    The root of the manifest's paths is `output`. The label is the biological class and the centre
    is the medical centre. The splits are drawn by patient, because tiles have no official ones.
    The robustness index is computed over all splits.

    Args:
        download: Folder of one of the datasets.
        output: Folder for `tiles/` and manifest.csv. Existing tiles are kept.
        metadata: PathoROB's list of the tiles to use, such as tolkach_esca_reduced.csv; None uses
            all tiles.
        seed: Seed of the splits.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, or lacks a tile of the list.
    """
    shards = find_shards(download, _COLUMNS, _SOURCE)
    listed = None if metadata is None else _read_listed(metadata)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    rows = []
    for tile in read_rows(shards, _COLUMNS):
        if listed is None or (str(tile["slide_id"]), str(tile["patch_id"])) in listed:
            rows.append(_write_tile(tile, output))
    if listed is not None and len(rows) < len(listed):
        raise UserError(
            f"{len(listed) - len(rows):,} of {len(listed):,} tiles of {metadata} are not in "
            f"{download}. Give the list of the same dataset, or download all of {_SOURCE}."
        )
    table = pd.DataFrame(rows)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(manifest, table)


def _read_listed(metadata: Path) -> set[tuple[str, str]]:
    """Slide and patch of the listed tiles."""
    names = {"path": "patch_id", "slide": "slide_id", "subset": "subset"}
    table = read_table(metadata, names, list(names))
    table = table[table["subset"] != "OOD"]
    if table.empty:
        raise UserError(f"{metadata} lists no tiles. Expected PathoROB's data/metadata/*.csv.")
    return set(zip(table["slide"], table["path"], strict=True))


def _write_tile(tile: dict[str, Any], output: Path) -> dict[str, str]:
    slide_id, centre = str(tile["slide_id"]), str(tile["medical_center"])
    patient, slide = _identify(slide_id, centre)
    stem = Path("tiles") / safe_name(slide) / safe_name(str(tile["patch_id"]))
    name = write_image(tile["image"]["bytes"], output, stem, _SOURCE)
    return {
        "path": name.as_posix(),
        "label": str(tile["biological_class"]),
        "patient": patient,
        "slide": slide,
        "centre": centre,
    }


def _identify(slide_id: str, centre: str) -> tuple[str, str]:
    """Returns patient and slide; other names are case numbers, unique within a centre."""
    if match := _TCGA.match(slide_id) or _CAMELYON17.match(slide_id):
        return match[0], slide_id
    name = f"{centre}_{slide_id}"
    return name, name
