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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from tqdm import tqdm

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_file
from g2l_plugin.tasks.manifest_table import read_table, write_table
from g2l_plugin.tasks.splits import split_patients

_COLUMNS = ("image", "slide_id", "patch_id", "biological_class", "medical_center")
_SOURCE = (
    "a dataset of https://huggingface.co/bifold-pathomics, as `hf download --repo-type dataset "
    "bifold-pathomics/PathoROB-camelyon --local-dir FOLDER` fetches it"
)
_SHARD = re.compile(r"(?P<start>.*)-\d{5}-of-(?P<total>\d{5})\.parquet")
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\x00": ".tif", b"MM\x00*": ".tif"}
"""How a picture's bytes begin."""

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
    shards = _find_shards(download)
    wanted = None if metadata is None else _read_wanted(metadata)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    total = sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards)
    rows = []
    for tile in tqdm(_read_tiles(shards), desc="Writing tiles", total=total, unit="tile"):
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


def _find_shards(download: Path) -> list[Path]:
    found = download.rglob("*.parquet")
    shards = sorted(
        path
        for path in found
        if not any(p.startswith(".") for p in path.relative_to(download).parts)
    )
    if not shards:
        raise UserError(f"No parquet files in {download}. Expected {_SOURCE}.")
    for shard in shards:
        if name := _SHARD.fullmatch(shard.name):
            for number in range(int(name["total"])):
                other = shard.with_name(f"{name['start']}-{number:05d}-of-{name['total']}.parquet")
                if not other.exists():
                    raise UserError(f"{other} is missing. Expected {_SOURCE}.")
        try:
            columns = pq.ParquetFile(shard).schema_arrow.names
        except (OSError, ValueError) as error:
            raise UserError(
                f"{shard} cannot be read ({in_one_line(error)}). Fetch it again: {_SOURCE}."
            ) from error
        if missing := [column for column in _COLUMNS if column not in columns]:
            raise UserError(f"{shard} has no column {missing[0]}. Expected {_SOURCE}.")
    return shards


def _read_wanted(metadata: Path) -> set[tuple[str, str]]:
    """Slide and patch of the tiles that the robustness index is of."""
    names = {"path": "patch_id", "slide": "slide_id", "subset": "subset"}
    table = read_table(metadata, names, list(names))
    table = table[table["subset"] != "OOD"]
    if table.empty:
        raise UserError(f"{metadata} lists no tiles. Expected PathoROB's data/metadata/*.csv.")
    return set(zip(table["slide"], table["path"], strict=True))


def _read_tiles(shards: list[Path]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(128, columns=list(_COLUMNS)):
            yield from batch.to_pylist()


def _write_tile(tile: dict[str, Any], output: Path) -> dict[str, str]:
    pixels = tile["image"]["bytes"]
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if pixels.startswith(start)), None)
    slide_id, centre = str(tile["slide_id"]), str(tile["medical_center"])
    if suffix is None:
        raise UserError(
            f"Tile {tile['patch_id']} of slide {slide_id} is no PNG, JPEG or TIFF. Expected "
            f"{_SOURCE}."
        )
    patient, slide = _identify(slide_id, centre)
    name = Path("tiles") / _safe(slide) / f"{_safe(str(tile['patch_id']))}{suffix}"
    if not (output / name).is_file():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        with new_file(output / name) as partial:
            partial.write_bytes(pixels)
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
