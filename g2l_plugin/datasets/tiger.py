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

_LEFT_OUT = ""
_CLASS_SETS = {
    "all": {label: label for label in _CLASSES.values()},
    "paper": {
        "invasive tumor": "tumor",
        "in-situ tumor": "tumor",
        "tumor-associated stroma": "stroma",
        "necrosis not in-situ": "necrosis",
        "inflamed stroma": "inflamed stroma",
        "rest": "rest",
        "healthy glands": _LEFT_OUT,
    },
}
"""Label in the manifest of each class of TIGER, by name of the set."""

_PATIENTS = {
    "TCGA": re.compile(r"(TCGA-\w{2}-\w{4})-"),
    "RUMC": re.compile(r"(TC_S\d+_P\d+)_"),
    "JB": re.compile(r"(\d+)[BS]$"),
}
"""Centre to the pattern that starts its slide names; the group is the patient."""


def prepare(
    download: Path,
    output: Path,
    size: int = 512,
    min_purity: float = 0.5,
    stride: int | None = None,
    classes: str = "paper",
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Cuts tiles on a grid and labels each with the class that covers most of it.

    The defaults are those of the G2L paper (arXiv 2510.11176), so a robustness index may be set
    beside its: tiles of 512 pixels that overlap by half; a class covers at least half of a tile;
    invasive and in-situ tumour are one of five classes, and healthy glands are left out.

    The root of the manifest's paths is `output`. If both tissue-bcss and tissue-cells have regions
    of a slide, only those of tissue-bcss are cut, so that no tissue appears twice. Classes with
    tiles from fewer than three patients are left out. The splits are drawn by patient, because
    there are no official ones.

    Args:
        download: The folder wsirois, its parent, or its subfolder roi-level-annotations.
        output: Folder for `tiles/` and manifest.csv. An interrupted run continues there.
        size: Side of the tiles, in pixels at 0.5 microns per pixel.
        min_purity: Smallest share of a tile that its class must cover, 0 to 1.
        stride: Pixels from a tile to the next, a divisor of `size`; None is half a tile.
        classes: `paper` for the five classes of the paper, or `all` for TIGER's seven.
        seed: Seed of the splits.
        workers: Number of processes; None uses one per CPU core.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, the stride does not divide the size, or the
            set of classes is unknown.
    """
    if classes not in _CLASS_SETS:
        raise UserError(f"The classes are {classes!r}. Expected paper or all (--classes).")
    if stride is None:
        stride = size // 2
    rules = Rules(size, min_purity, stride=stride, classes=classes)
    parts = [f"{name}/{kind}" for name in _SETS for kind in ("images", "masks")]
    annotations = "roi-level-annotations"
    subfolders = ["", annotations, f"wsirois/{annotations}", f"training/wsirois/{annotations}"]
    root = find_root(download, parts, _SOURCE, subfolders)
    regions = _list_regions(root)
    table = cut_regions(read_tiles, regions, rules, output, workers)
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
    stride = rules.stride or rules.size
    if min(mask.shape) < rules.size:
        return
    for row, column, label in choose_tiles(_shares(mask, rules, stride), region, rules):
        if label != _LEFT_OUT:
            x, y = column * stride, row * stride
            yield x, y, label, pixels[y : y + rules.size, x : x + rules.size]


def _shares(mask: np.ndarray, rules: Rules, stride: int) -> dict[str, np.ndarray]:
    """Computes, for each label, the share of each tile that it covers, float (rows, columns)."""
    labels = _CLASS_SETS[rules.classes]
    # Pixels are counted in squares as large as the stride; a tile is some of them.
    height, width = (length // stride for length in mask.shape)
    mask = mask[: height * stride, : width * stride]
    bins = [np.arange(length) // stride for length in mask.shape]
    n_squares = rules.size // stride
    shares = {}
    for label in dict.fromkeys(labels.values()):
        values = [value for value, name in _CLASSES.items() if labels[name] == label]
        counts = np.zeros((height, width), np.int64)
        count_pixels(np.isin(mask, values), bins[0], bins[1], counts)
        windows = np.lib.stride_tricks.sliding_window_view(counts, (n_squares, n_squares))
        shares[label] = windows.sum(axis=(2, 3)) / rules.size**2
    return shares


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
