"""PLISM: the same tissue in 13 stains under 7 scanners, to measure what an encoder sees of these.

Source: Ochi et al. 2024 (https://doi.org/10.1038/s41597-024-03122-5), registered and tiled for
PLISM-benchmark (arXiv 2501.16239) as https://huggingface.co/datasets/owkin/plism-dataset-tiles
(CC BY 4.0): 91 slides of 16,278 tiles of 224 px at 0.5 microns per pixel, parquet with the columns
slide_id (`GIVH_AT2_to_GMH_S60.tif`: stain, scanner and what it is registered to), tile_id (the
same place on every slide) and png.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.manifest_table import write_table
from g2l_plugin.tasks.shards import find_shards, read_rows, write_picture

_COLUMNS = ("slide_id", "tile_id", "png")
_SOURCE = (
    "https://huggingface.co/datasets/owkin/plism-dataset-tiles, as `hf download --repo-type "
    "dataset owkin/plism-dataset-tiles --local-dir FOLDER` fetches it (146 GB)"
)
_SLIDE = re.compile(r"(?P<stain>[^_]+)_(?P<scanner>[^_]+)_to_.+")
_VAL_SHARE = 0.2


def prepare(download: Path, output: Path, every: int = 16, seed: int = 0) -> Path:
    """Writes the tiles of some places as they are, and their manifest.

    The root is `output`. The label is the scanner: eva's head then says how well the scanner can be
    read from the embeddings, where LESS is better. `MatchedRobustness` takes the columns scanner,
    stain and location. A place is in one split, train or val, on all slides.

    Args:
        download: Folder of the dataset.
        output: Folder for `tiles/` and manifest.csv. What is there already is not written again.
        every: Takes every n-th place in the order of their names; 16 gives 1,018 of 91 slides.
        seed: Seed of the splits.

    Returns:
        The manifest.

    Raises:
        UserError: A part of the download is missing, a slide lacks places that others have, or
            fewer than two places are taken.
    """
    if every < 1:
        raise UserError(f"Every {every}-th place cannot be taken: give --every 1 or more.")
    shards = find_shards(download, _COLUMNS, _SOURCE)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    places = _find_places(shards)
    wanted = set(places[::every])
    if len(wanted) < 2:
        raise UserError(
            f"Every {every:,}-th of {len(places):,} places is one, too few for train and val: give "
            f"--every {len(places) - 1:,} or less."
        )
    rows = [
        _write_tile(row, output)
        for row in read_rows(shards, _COLUMNS)
        if str(row["tile_id"]) in wanted
    ]
    table = pd.DataFrame(rows)
    held_out = np.random.default_rng(seed).permutation(sorted(wanted))
    held_out = held_out[: max(1, round(len(held_out) * _VAL_SHARE))]
    table["split"] = np.where(table["location"].isin(held_out), "val", "train")
    return write_table(manifest, table)


def _find_places(shards: list[Path]) -> list[str]:
    """The places that every slide shows, in the order of their names."""
    ids = pd.concat([pd.read_parquet(shard, columns=list(_COLUMNS[:2])) for shard in shards])
    of_slide = ids.groupby("slide_id")["tile_id"].agg(lambda tiles: frozenset(map(str, tiles)))
    places = frozenset.union(*of_slide)
    for slide, own in of_slide.items():
        if missing := sorted(places - own):
            raise UserError(
                f"Slide {slide} lacks {len(missing):,} of {len(places):,} places ({missing[0]}). "
                f"Expected all of {_SOURCE}."
            )
    return sorted(places)


def _write_tile(row: dict, output: Path) -> dict[str, str]:
    slide, location = str(row["slide_id"]), str(row["tile_id"])
    if (match := _SLIDE.fullmatch(slide)) is None:
        raise UserError(
            f"Slide {slide} has no stain and scanner in its name. Expected STAIN_SCANNER_to_... of "
            f"{_SOURCE}."
        )
    condition = f"{match['stain']}_{match['scanner']}"
    name = write_picture(row["png"]["bytes"], output, Path("tiles") / condition / location, _SOURCE)
    return {
        "path": name.as_posix(),
        "label": match["scanner"],
        "slide": slide,
        "scanner": match["scanner"],
        "stain": match["stain"],
        "location": location,
    }
