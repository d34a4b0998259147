"""PLISM: the same tissue in 13 stains under 7 scanners, to measure an encoder's robustness.

Source: Ochi et al. 2024 (https://doi.org/10.1038/s41597-024-03122-5), registered and tiled for
PLISM-benchmark (arXiv 2501.16239) as https://huggingface.co/datasets/owkin/plism-dataset-tiles,
licence CC BY 4.0. Each of the 91 slides has 16,278 tiles of 224 px at 0.5 microns per pixel. The
parquet files have the columns slide_id (stain, scanner and the slide it is registered to, such as
`GIVH_AT2_to_GMH_S60.tif`), tile_id (the same location on every slide) and png.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from g2l_plugin.datasets.download import find_shards, read_rows, write_image
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.errors import UserError

_COLUMNS = ("slide_id", "tile_id", "png")
_SOURCE = (
    "https://huggingface.co/datasets/owkin/plism-dataset-tiles (146 GB), downloaded with `hf "
    "download --repo-type dataset owkin/plism-dataset-tiles --local-dir FOLDER`"
)
_SLIDE = re.compile(r"(?P<stain>[^_]+)_(?P<scanner>[^_]+)_to_.+")
_VAL_SHARE = 0.2


def prepare(download: Path, output: Path, every: int = 16, seed: int = 0) -> Path:
    """Writes the tiles of every n-th location unchanged, and their manifest.

    The root of the manifest's paths is `output`. The label is the scanner: the accuracy of eva's
    head is how well the embeddings reveal the scanner, and LOWER is better. `MatchedRobustness`
    uses the columns scanner, stain and location. A location is in one split, train or val, on all
    slides.

    Args:
        download: Folder of the dataset.
        output: Folder for `tiles/` and manifest.csv. Existing tiles are kept.
        every: Use every n-th location, sorted by name; 16 gives 1,018 locations on 91 slides.
        seed: Seed of the splits.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing, a slide lacks locations that others have, or
            fewer than two locations remain.
    """
    if every < 1:
        raise UserError(f"`--every` is {every}. Expected 1 or more.")
    shards = find_shards(download, _COLUMNS, _SOURCE)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    locations = _find_locations(shards)
    chosen = set(locations[::every])
    if len(chosen) < 2:
        raise UserError(
            f"`--every {every:,}` keeps one of {len(locations):,} locations, too few for train and "
            f"val. Give --every {len(locations) - 1:,} or less."
        )
    rows = [
        _write_tile(row, output)
        for row in read_rows(shards, _COLUMNS)
        if str(row["tile_id"]) in chosen
    ]
    table = pd.DataFrame(rows)
    held_out = np.random.default_rng(seed).permutation(sorted(chosen))
    held_out = held_out[: max(1, round(len(held_out) * _VAL_SHARE))]
    table["split"] = np.where(table["location"].isin(held_out), "val", "train")
    return write_table(manifest, table)


def _find_locations(shards: list[Path]) -> list[str]:
    """Returns the locations, sorted by name, and checks that every slide has all of them."""
    ids = pd.concat([pd.read_parquet(shard, columns=list(_COLUMNS[:2])) for shard in shards])
    of_slide = ids.groupby("slide_id")["tile_id"].agg(lambda tiles: frozenset(map(str, tiles)))
    locations = frozenset.union(*of_slide)
    for slide, own in of_slide.items():
        if missing := sorted(locations - own):
            raise UserError(
                f"Slide {slide} lacks {len(missing):,} of {len(locations):,} locations, such as "
                f"{missing[0]}. Expected all of {_SOURCE}."
            )
    return sorted(locations)


def _write_tile(row: dict, output: Path) -> dict[str, str]:
    slide, location = str(row["slide_id"]), str(row["tile_id"])
    if (match := _SLIDE.fullmatch(slide)) is None:
        raise UserError(
            f"Slide {slide} has no stain and scanner in its name. Expected names such as "
            f"GIVH_AT2_to_GMH_S60.tif, from {_SOURCE}."
        )
    condition = f"{match['stain']}_{match['scanner']}"
    name = write_image(row["png"]["bytes"], output, Path("tiles") / condition / location, _SOURCE)
    return {
        "path": name.as_posix(),
        "label": match["scanner"],
        "slide": slide,
        "scanner": match["scanner"],
        "stain": match["stain"],
        "location": location,
    }
