"""The table of a manifest: reading, checking, writing and summing up."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger
from rich.console import Console
from rich.table import Table

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import write_text
from g2l_plugin.slides.patients import clean_patient

SPLITS = ("train", "val", "test")


def read_table(path: Path, columns: dict[str, str], required: Sequence[str]) -> pd.DataFrame:
    """Reads a manifest with every value as text; a missing value becomes "".

    Args:
        path: A CSV file, or a parquet file if its suffix is .parquet.
        columns: Our column names to those of the manifest.
        required: Our names of the columns that it must have.

    Returns:
        The table with our column names, normalised paths and cleaned names of patients.

    Raises:
        UserError: The manifest does not exist, cannot be read, or lacks a column.
    """
    if not path.is_file():
        raise UserError(
            f"Manifest {path} does not exist. Write one with `g2l prepare` and give its path "
            "(MANIFEST_FILE, `manifest_file`), absolute or relative to the root."
        )
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"Manifest {path} cannot be read ({in_one_line(error)}). Expected a CSV file, or a "
            "parquet file whose name ends in .parquet."
        ) from error
    if missing := [columns[name] for name in required if columns[name] not in table]:
        raise UserError(
            f"Manifest {path} has no column {', '.join(missing)}. Its columns are "
            f"{', '.join(map(str, table.columns))}. Map their names with "
            "`column_mapping` (MANIFEST_COLUMNS, --columns)."
        )
    renamed = {theirs: ours for ours, theirs in columns.items() if theirs in table}
    # If `centre` is mapped to `scanner`, the manifest's own `centre` column is dropped.
    table = table.drop(
        columns=[ours for ours in renamed.values() if ours not in renamed], errors="ignore"
    )
    table = table.rename(columns=renamed)
    for name in ("label", "split"):
        if name in table:
            table[name] = table[name].str.strip()
    if "patient" in table:
        table["patient"] = table["patient"].map(clean_patient)
    return table.assign(path=[posixpath.normpath(name) if name else "" for name in table["path"]])


def check_table(table: pd.DataFrame, path: Path) -> None:
    """Checks the content of a manifest over all splits.

    Args:
        table: The result of `read_table`.
        path: The manifest, for errors.

    Raises:
        UserError: The manifest is empty, a path is not below the root or is listed twice, a tile
            has no label, a split is unknown, a label is not in train or only in one split, or a
            patient is in two splits.
    """
    if table.empty:
        raise UserError(f"Manifest {path} has no rows.")
    _check_paths(table["path"], path)
    if (empty := table["label"] == "").any():
        raise UserError(
            f"{empty.sum():,} of {len(table):,} rows of {path} have no label. The first is "
            f"{table['path'][empty.idxmax()]}. Give every tile a label, or remove these rows."
        )
    if "split" in table:
        _check_splits(table, path)


def check_files(root: Path, paths: Iterable[str]) -> None:
    """Checks that files exist.

    Folders are listed one by one, because this is fast on remote disks too.

    Raises:
        UserError: Some files do not exist.
    """
    names = pd.Series(list(paths), dtype=object)
    missing: list[str] = []
    for folder, group in names.groupby(names.map(posixpath.dirname)):
        try:
            existing = set(os.listdir(root / str(folder)))
        except (FileNotFoundError, NotADirectoryError):
            existing = set()
        missing += [name for name in group if posixpath.basename(name) not in existing]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(names):,} files do not exist. The first is "
            f"{root / missing[0]}. Check the root (DATA_ROOT), or unpack the download again."
        )


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sorts distinct labels: first numbers by value, then words."""
    return sorted(set(labels), key=_label_key)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Checks a manifest and writes it as CSV, atomically.

    Returns:
        The path.

    Raises:
        UserError: `ManifestTiles` would refuse the manifest.
    """
    check_table(table.reset_index(drop=True), path)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return path


def print_summary(manifest: Path) -> None:
    """Prints the rows per label and split, and the patients and centres of each split."""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    splits = [split for split in SPLITS if (rows["split"] == split).any()]
    unit = "slides" if "target" in rows else "tiles"
    table = Table(unit, *splits, "all", title=f"Content of {manifest.name}")
    for column in table.columns[1:]:
        column.justify = "right"
    parts = [rows[rows["split"] == split] for split in splits] + [rows]
    for label in sort_labels(rows["label"]):
        table.add_row(label, *(f"{(part['label'] == label).sum():,}" for part in parts))
    table.add_section()
    table.add_row(f"all {unit}", *(f"{len(part):,}" for part in parts))
    for name in ("patient", "centre"):
        if name in rows:
            known = (part[name][part[name] != ""] for part in parts)
            table.add_row(f"{name}s", *(f"{values.nunique():,}" for values in known))
    Console(soft_wrap=True).print(table)


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pq.read_table(path)
    text = [pc.cast(column, pa.string()) for column in table.columns]
    return pa.table(text, names=table.column_names).to_pandas().fillna("")


def _check_paths(paths: pd.Series, path: Path) -> None:
    outside = (paths == "") | paths.str.startswith(("/", "..")) | (paths == ".")
    if outside.any():
        raise UserError(
            f"{path} lists the tile {paths[outside.idxmax()]!r}. Expected a path relative to the "
            "root and below it, because the tile's embedding is stored under the same path."
        )
    if (repeated := paths.duplicated()).any():
        raise UserError(
            f"{path} lists {repeated.sum():,} tiles twice. The first is "
            f"{paths[repeated.idxmax()]}. Remove the repeated rows."
        )
    # eva names the file of an embedding after the tile's path without its suffix.
    stems = pd.Series([posixpath.splitext(name)[0] for name in paths], paths.index)
    if (same := stems.duplicated(keep=False)).any():
        first, second = paths[stems == stems[same.idxmax()]].iloc[:2]
        raise UserError(
            f"{path} lists {first} and {second}, which differ only in their suffix. Their "
            "embeddings would share a file. Rename one of them."
        )


def _check_splits(table: pd.DataFrame, path: Path) -> None:
    counts = pd.crosstab(table["label"], table["split"])
    if unknown := sorted(set(counts.columns) - set(SPLITS)):
        raise UserError(
            f"{path} has rows of the split {unknown[0]!r}. Expected {', '.join(SPLITS)}."
        )
    if len(counts.columns) > 1:
        for label in sort_labels(counts.index):
            _check_label(
                label, [split for split in SPLITS if counts.get(split, {}).get(label)], path
            )
    unknown_patient = pd.Series(True, table.index)
    if "patient" in table:
        if shared := _describe_shared(table[["patient", "split"]], "patient", path):
            raise UserError(f"{shared} Give each patient one split.")
        unknown_patient = table["patient"].map(clean_patient) == ""
    # Of known patients, two slides may have one name. PLISM splits the places of each slide.
    if "slide" in table and (
        shared := _describe_shared(table.loc[unknown_patient, ["slide", "split"]], "slide", path)
    ):
        logger.warning(f"{shared} If that is not meant, give each slide one split.")


def _describe_shared(table: pd.DataFrame, name: str, path: Path) -> str:
    """Describes the patients, or slides, that are in two splits; "" if none is."""
    # Cleaned here too: not every table that is checked was read from a file.
    units = table.assign(unit=table[name].map(clean_patient))
    known = units.loc[units["unit"] != "", ["unit", "split"]].drop_duplicates()
    if not (shared := known["unit"].duplicated()).any():
        return ""
    unit = known["unit"][shared.idxmax()]
    splits = known["split"][known["unit"] == unit]
    return (
        f"{known['unit'][shared].nunique():,} {name}s are in two splits of {path}, so test {name}s "
        f"are seen in training. The first is {unit}, in {' and '.join(splits)}."
    )


def _check_label(label: str, splits: list[str], path: Path) -> None:
    if len(splits) == 1:
        where = f"only in the split {splits[0]!r}"
    elif "train" not in splits:
        where = f"in {' and '.join(splits)}, but not in 'train'"
    else:
        return
    raise UserError(
        f"The label {label!r} of {path} is {where}. Expected every label in train and in an "
        "evaluated split. Move patients between the splits, or remove the label."
    )


def _label_key(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
