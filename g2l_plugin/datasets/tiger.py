"""TIGER: tissue classes of breast cancer from three centres, to measure robustness.

Source: https://tiger.grand-challenge.org/Data (WSIROIS), licence CC BY-NC 4.0. Regions of interest
and their label masks are PNG files at about 0.5 microns per pixel. Slides of TCGA are named by
barcode, those of Radboud UMC (RUMC) like TC_S01_P000004_C0001_B103, and those of the Jules Bordet
Institut (JB) like 100B or 114S.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from g2l_plugin.datasets.cutting import (
    Region,
    Rules,
    Tile,
    choose_tiles,
    count_pixels,
    cut_regions,
)
from g2l_plugin.datasets.download import find_root, safe_name
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.datasets.splits import leave_out_rare, split_patients
from g2l_plugin.errors import UserError, in_one_line

_SOURCE = (
    "wsirois/roi-level-annotations of TIGER: `aws s3 sync --no-sign-request s3://tiger-training/"
    "wsirois/roi-level-annotations FOLDER/wsirois/roi-level-annotations` "
    "(https://tiger.grand-challenge.org/Data)"
)
_SETS = ("tissue-bcss", "tissue-cells")
_CLASSES = {
    1: "invasive tumor",
    2: "tumor-associated stroma",
    3: "in-situ tumor",
    4: "healthy glands",
    5: "necrosis not in-situ",
    6: "inflamed stroma",
    7: "rest",
}
"""Values in the masks; 0 is not annotated."""

_PATIENTS = {
    "TCGA": re.compile(r"(TCGA-\w{2}-\w{4})-"),
    "RUMC": re.compile(r"(TC_S\d+_P\d+)_"),
    "JB": re.compile(r"(\d+)[BS]$"),
}
"""Centre to the pattern that starts its slide names; the group is the patient."""


def prepare(
    download: Path,
    output: Path,
    size: int = 256,
    min_purity: float = 0.75,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Cuts tiles on a grid without overlap and labels each with the class that covers most of it.

    The root of the manifest's paths is `output`. If both tissue-bcss and tissue-cells have regions
    of a slide, only those of tissue-bcss are cut, so that no tissue appears twice. Classes with
    tiles from fewer than three patients are left out. The splits are drawn by patient, because
    there are no official ones.

    Args:
        download: The folder wsirois, its parent, or its subfolder roi-level-annotations.
        output: Folder for `tiles/` and manifest.csv. An interrupted run continues there.
        size: Side of the tiles, in pixels at 0.5 microns per pixel.
        min_purity: Smallest share of a tile that its class must cover, 0 to 1.
        seed: Seed of the splits.
        workers: Number of processes; None uses one per CPU core.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing.
    """
    parts = [f"{name}/{kind}" for name in _SETS for kind in ("images", "masks")]
    annotations = "roi-level-annotations"
    subfolders = ["", annotations, f"wsirois/{annotations}", f"training/wsirois/{annotations}"]
    root = find_root(download, parts, _SOURCE, subfolders)
    regions = _list_regions(root)
    table = cut_regions(read_tiles, regions, Rules(size, min_purity), output, workers)
    table = leave_out_rare(table)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(output / "manifest.csv", table)


def read_tiles(region: Region, rules: Rules) -> Iterator[Tile]:
    """Reads the tiles of a region of interest.

    Raises:
        UserError: The image or its mask cannot be read, or their sizes differ.
    """
    try:
        pixels = np.asarray(Image.open(region.image).convert("RGB"))
        mask = np.asarray(Image.open(region.masks[""]))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{region.image} or its mask cannot be read ({in_one_line(error)})"
        ) from error
    mask = mask[..., 0] if mask.ndim == 3 else mask
    if mask.shape != pixels.shape[:2]:
        raise UserError(
            f"{region.image} has {pixels.shape[:2]} pixels, but its mask has {mask.shape}"
        )
    rows, columns = (length // rules.size for length in mask.shape)
    if not rows or not columns:
        return
    mask = mask[: rows * rules.size, : columns * rules.size]
    shares = {}
    for value, label in _CLASSES.items():
        counts = np.zeros((rows, columns), np.int64)
        bins = [np.arange(length) // rules.size for length in mask.shape]
        count_pixels(mask == value, bins[0], bins[1], counts)
        shares[label] = counts / rules.size**2
    for row, column, label in choose_tiles(shares, region, rules):
        x, y = column * rules.size, row * rules.size
        yield x, y, label, pixels[y : y + rules.size, x : x + rules.size]


def _list_regions(root: Path) -> list[Region]:
    regions: list[Region] = []
    for name in _SETS:
        slides = {region.facts["slide"] for region in regions}
        images = sorted((root / name / "images").glob("[!.]*.png"))
        if not images:
            raise UserError(f"{root / name / 'images'} has no PNG files. Expected {_SOURCE}.")
        missing = [path for path in images if not (root / name / "masks" / path.name).is_file()]
        if missing:
            raise UserError(
                f"{root / name / 'masks' / missing[0].name} is missing, one of {len(missing):,} "
                f"missing masks. Expected {_SOURCE}."
            )
        for image in images:
            slide = image.stem.split("_[")[0]
            if slide not in slides:
                mask = root / name / "masks" / image.name
                facts = _identify(slide) | {"slide": slide}
                regions.append(Region(safe_name(image.stem), image, {"": mask}, facts))
    return regions


def _identify(slide: str) -> dict[str, str]:
    for centre, pattern in _PATIENTS.items():
        if match := pattern.match(slide):
            patient = f"JB_{match[1]}" if centre == "JB" else match[1]
            return {"patient": patient, "centre": centre}
    raise UserError(
        f"{slide} is not the name of a TIGER slide: a TCGA barcode, TC_S01_P000004_C0001_B103 "
        f"(RUMC) or 100B (JB). Expected {_SOURCE}."
    )
