"""HEST-Benchmark: the expression of 50 genes in tiles of 224 px at 0.5 microns per pixel.

Source: Jaume et al. 2024 (arXiv 2406.16192), licence CC BY-NC-SA 4.0. A task of
https://huggingface.co/datasets/MahmoodLab/hest-bench is a folder: `patches/ID.h5` with the tiles of
a sample (`img`) and their names (`barcode`), `adata/ID.h5ad` with its counts, which has more spots
than tiles, `splits/train_K.csv` and `test_K.csv`, and `var_50genes.json`, the genes that vary most.

| task | cancer | samples | tiles | folds |
|---|---|---|---|---|
| IDC | breast | 4 | 35,536 | 4, a patient each |
| PRAD | prostate | 23 | 62,710 | 2, a patient each |

The download does not name the patients; its folds keep each in one.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from g2l_plugin.datasets.download import find_root, safe_name
from g2l_plugin.datasets.h5ad import read_counts, read_text
from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_file
from g2l_plugin.metrics.gene_table import FILE, FOLD, write_genes

_GENES = "var_50genes.json"
_PARTS = (_GENES, "splits", "patches", "adata")
_SOURCE = (
    "a task of https://huggingface.co/datasets/MahmoodLab/hest-bench, downloaded with `hf download "
    "--repo-type dataset MahmoodLab/hest-bench --include 'IDC/*' --local-dir FOLDER`: FOLDER/IDC"
)
_COLUMNS = ("sample_id", "patches_path", "expr_path")
_SPLIT = re.compile(r"(?P<part>train|test)_(?P<fold>\d+)\.csv")
_LABEL = "spot"
"""The label of every tile, which a manifest needs; what is predicted is in the table of genes."""


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A sample: its name, the fold that tests it, its tiles and its counts."""

    name: str
    fold: int
    patches: Path
    counts: Path


def prepare(download: Path, output: Path) -> Path:
    """Writes the tiles as PNG, the log(1 + count) of their genes, and their manifest.

    The root of the manifest's paths is `output`, and genes.parquet is there too. The column `fold`
    is the published fold that tests a tile; `GeneExpression` uses all folds. For eva's head, the
    test tiles of fold 0 are val and the others train.

    Args:
        download: Folder of a task, such as IDC, or a folder with one task in it.
        output: Folder for `tiles/`, genes.parquet and manifest.csv. Existing tiles are kept.

    Returns:
        Path of the manifest.

    Raises:
        UserError: A part of the download is missing or damaged, it has several tasks, or its parts
            do not fit each other.
    """
    root = _find_task(download)
    genes = _read_gene_names(root / _GENES)
    samples = _read_samples(root)
    manifest = output / "manifest.csv"
    manifest.unlink(missing_ok=True)
    rows, counts = [], []
    for sample in samples:
        barcodes = _read_barcodes(sample.patches)
        counts.append(read_counts(sample.counts, barcodes, genes))
        split = "val" if sample.fold == samples[0].fold else "train"
        for path in _write_tiles(sample, barcodes, output):
            rows.append((path, _LABEL, split, sample.name, sample.fold))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "slide", FOLD])
    write_genes(output / FILE, table["path"].tolist(), genes, np.log1p(np.concatenate(counts)))
    return write_table(manifest, table)


def _find_task(download: Path) -> Path:
    inside = sorted(path.parent.name for path in download.glob(f"*/{_GENES}"))
    if len(inside) > 1 and not (download / _GENES).exists():
        raise UserError(
            f"{download} has {len(inside)} tasks: {', '.join(inside)}. Give one, each with an "
            f"output of its own: g2l prepare hest {download / inside[0]} --output "
            f"data/hest_{inside[0].lower()}"
        )
    return find_root(download, _PARTS, _SOURCE, ("", *inside))


def _read_gene_names(path: Path) -> list[str]:
    try:
        genes = json.loads(path.read_text(encoding="utf-8"))["genes"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({in_one_line(error)}). Expected {_SOURCE}."
        ) from error
    if not genes or len(set(genes)) < len(genes):
        raise UserError(f"{path} lists no genes, or one twice. Expected {_SOURCE}.")
    return list(map(str, genes))


def _read_samples(root: Path) -> list[_Sample]:
    """The samples, sorted by the fold that tests them; checks that the folds fit each other."""
    names = [path.name for path in (root / "splits").iterdir() if _SPLIT.fullmatch(path.name)]
    numbers = sorted({int(_SPLIT.fullmatch(name)["fold"]) for name in names})  # type: ignore[index]
    tested, trained = (
        {fold: _read_split(root / "splits" / f"{part}_{fold}.csv") for fold in numbers}
        for part in ("test", "train")
    )
    if len(numbers) < 2:
        raise UserError(f"{root / 'splits'} has {len(numbers)} folds. Expected {_SOURCE}.")
    every = pd.concat(list(tested.values()))
    for fold in numbers:
        others = set(every["sample_id"]) - set(tested[fold]["sample_id"])
        if every["sample_id"].duplicated().any() or set(trained[fold]["sample_id"]) != others:
            raise UserError(
                f"{root / 'splits'}: fold {fold} does not train on all samples that it does not "
                f"test, or a sample is tested twice. Expected the folds of {_SOURCE}."
            )
    samples = [
        _Sample(name, fold, root / patches, root / counts)
        for fold, own in tested.items()
        for name, patches, counts in own[list(_COLUMNS)].itertuples(index=False)
    ]
    for path in (path for sample in samples for path in (sample.patches, sample.counts)):
        if not path.is_file():
            raise UserError(f"{path} is missing. Expected {_SOURCE}.")
    return samples


def _read_split(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is missing. Expected {_SOURCE}.")
    table = pd.read_csv(path, dtype=str)
    if missing := [column for column in _COLUMNS if column not in table]:
        raise UserError(f"{path} has no column {missing[0]}. Expected {_SOURCE}.")
    return table


def _read_barcodes(path: Path) -> list[str]:
    """The names of a sample's tiles; checks the tiles' shape."""
    try:
        with h5py.File(path) as file:
            barcodes = read_text(file["barcode" if "barcode" in file else "barcodes"])
            images = file["img"]
            if images.dtype != np.uint8 or images.shape != (len(barcodes), *images.shape[1:3], 3):
                raise ValueError(f"{len(barcodes):,} names, and tiles of {images.shape}")
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"The tiles of {path} cannot be read ({in_one_line(error)}). Expected {_SOURCE}."
        ) from error
    return barcodes


def _write_tiles(sample: _Sample, barcodes: list[str], output: Path) -> list[str]:
    """Writes the tiles of a sample, and returns their paths in the output."""
    folder = Path("tiles") / safe_name(sample.name)
    (output / folder).mkdir(parents=True, exist_ok=True)
    paths = [(folder / f"{safe_name(barcode)}.png").as_posix() for barcode in barcodes]
    with h5py.File(sample.patches) as file:
        for number, path in enumerate(tqdm(paths, f"Writing tiles of {sample.name}", unit="tile")):
            if not (output / path).is_file():
                image = _read_tile(file["img"], number, sample.patches)
                with new_file(output / path) as partial:
                    # Fast rather than small: the tiles are read once.
                    image.save(partial, format="png", compress_level=1)
    return paths


def _read_tile(images: h5py.Dataset, number: int, path: Path) -> Image.Image:
    try:
        return Image.fromarray(images[number])
    except OSError as error:
        raise UserError(
            f"Tile {number:,} of {path} cannot be read ({in_one_line(error)}). Download it again."
        ) from error
