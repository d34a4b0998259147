"""PathoROB: biological classes from several medical centres, to measure robustness.

Source: Kömen et al. 2025 (arXiv 2507.17845). The datasets PathoROB-camelyon (CC0 1.0),
PathoROB-tcga (CC BY-NC-SA 4.0) and PathoROB-tolkach_esca (CC BY-SA 4.0) are parquet files at
https://huggingface.co/bifold-pathomics with the columns image, slide_id, patch_id,
biological_class and medical_center.

Each of the paper's metrics uses a part of the tiles. The lists of these tiles are in
`data/metadata` of https://github.com/bifold-pathomics/PathoROB:

| dataset | robustness index | average performance drop | clustering score |
|---|---|---|---|
| camelyon | camelyon | camelyon | camelyon_reduced |
| tcga | tcga_2x2 | tcga_4x4 | tcga_4x4 |
| tolkach_esca | tolkach_esca_reduced | tolkach_esca | tolkach_esca_reduced |

Only the performance drop uses rows of the subset OOD, tiles from other centres.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from g2l_plugin.datasets.download import find_shards, read_rows, safe_name, write_image
from g2l_plugin.datasets.manifest_table import read_table, write_table
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.listed_tiles import GROUP, join_entries

_COLUMNS = ("image", "slide_id", "patch_id", "biological_class", "medical_center")
_SOURCE = (
    "a dataset of https://huggingface.co/bifold-pathomics, downloaded with `hf download "
    "--repo-type dataset bifold-pathomics/PathoROB-camelyon --local-dir FOLDER`"
)
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}")
_CAMELYON17 = re.compile(r"patient_\d+(?=_node_\d+)")


def prepare(download: Path, output: Path, metadata: Sequence[Path] = (), seed: int = 0) -> Path:
    """Writes the tiles unchanged, and their manifest.

    The root of the manifest's paths is `output`. The label is the biological class and the centre
    is the medical centre. The splits are drawn by patient, because tiles have no official ones.
    The robustness metrics are computed over all splits, on the tiles of their list: the column
    `listed` has each tile's entries.

    Args:
        download: Folder of one of the datasets.
        output: Folder for `tiles/` and manifest.csv. Existing tiles are kept.
        metadata: PathoROB's lists of the tiles to use, such as camelyon.csv; all tiles if none is
            given.
        seed: Seed of the splits.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, or lacks a tile of a list.
    """
    shards = find_shards(download, _COLUMNS, _SOURCE)
    listed = _read_lists(metadata)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    rows = []
    for tile in read_rows(shards, _COLUMNS):
        entries = listed.pop((str(tile["slide_id"]), str(tile["patch_id"])), [])
        if entries or not metadata:
            rows.append(_write_tile(tile, output) | {GROUP: join_entries(entries)})
    if listed:
        name = next(iter(listed.values()))[0][0]
        raise UserError(
            f"{len(listed):,} of {len(listed) + len(rows):,} tiles of {name}.csv or another list "
            f"are not in {download}. Give lists of the same dataset, or download all of {_SOURCE}."
        )
    table = pd.DataFrame(rows)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(manifest, table)


def _read_lists(paths: Sequence[Path]) -> dict[tuple[str, str], list[tuple[str, str, int]]]:
    """Entries (list, subset, row) of each listed slide and patch."""
    names = {"path": "patch_id", "slide": "slide_id", "subset": "subset"}
    entries: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    for path in paths:
        table = read_table(path, names, list(names))
        if table.empty:
            raise UserError(f"{path} lists no tiles. Expected PathoROB's data/metadata/*.csv.")
        # The columns are copied out, because iterating over a table's rows is slow.
        columns = (table[name].tolist() for name in ("slide", "path", "subset"))
        for row, (slide, patch, subset) in enumerate(zip(*columns, strict=True)):
            entries.setdefault((slide, patch), []).append((path.stem, subset, row))
    return entries


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
