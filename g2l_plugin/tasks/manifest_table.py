"""The table of a manifest: read, checked as a whole, written."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import write_text

SPLITS = ("train", "val", "test")


def read_table(path: Path, columns: dict[str, str], required: Sequence[str]) -> pd.DataFrame:
    """Reads a manifest, every value as text, "" where there is none.

    Args:
        path: CSV, or parquet by its suffix.
        columns: Our names of columns to the manifest's.
        required: Which of ours it must have.

    Returns:
        The table, its columns under our names; paths are normalised.

    Raises:
        UserError: There is none, it cannot be read, or a column is missing.
    """
    if not path.is_file():
        raise UserError(
            f"Manifest {path} does not exist. `g2l prepare` writes manifests; give the path of one "
            "(MANIFEST_FILE, `manifest_file`), absolute or relative to the root."
        )
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"Manifest {path} cannot be read ({in_one_line(error)}). Expected CSV, or parquet in a "
            "file whose name ends in .parquet."
        ) from error
    if missing := [columns[name] for name in required if columns[name] not in table]:
        raise UserError(
            f"Manifest {path} has no column {', '.join(missing)}: its columns are "
            f"{', '.join(map(str, table.columns))}. `column_mapping` says what they are called."
        )
    renamed = {theirs: ours for ours, theirs in columns.items() if theirs in table}
    # Where `centre` is to be their `scanner`, their own `centre` gives way.
    table = table.drop(
        columns=[ours for ours in renamed.values() if ours not in renamed], errors="ignore"
    )
    table = table.rename(columns=renamed)
    for name in ("label", "split"):
        if name in table:
            table[name] = table[name].str.strip()
    return table.assign(path=[posixpath.normpath(name) if name else "" for name in table["path"]])


def check_table(table: pd.DataFrame, path: Path) -> None:
    """Checks what a manifest says, all splits together.

    Args:
        table: As `read_table` gives it.
        path: The manifest, for errors.

    Raises:
        UserError: It is empty; a path is no relative one, or listed twice; a tile has no label; a
            split is unknown; a label is not in train, or in train alone; a patient is in two.
    """
    if table.empty:
        raise UserError(f"Manifest {path} has no rows.")
    _check_paths(table["path"], path)
    if (empty := table["label"] == "").any():
        raise UserError(
            f"{empty.sum():,} of {len(table):,} rows of {path} have no label, the first that of "
            f"{table['path'][empty.idxmax()]}. Give every tile a label, or take them out."
        )
    if "split" in table:
        _check_splits(table, path)


def check_files(root: Path, paths: Iterable[str]) -> None:
    """Checks that files exist, a folder at a time: that is quick on remote disks too.

    Raises:
        UserError: Some do not.
    """
    names = pd.Series(list(paths), dtype=object)
    missing: list[str] = []
    for folder, group in names.groupby(names.map(posixpath.dirname)):
        try:
            there = set(os.listdir(root / str(folder)))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        missing += [name for name in group if posixpath.basename(name) not in there]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(names):,} files do not exist, the first is "
            f"{root / missing[0]}. Check the root (DATA_ROOT), or unpack the download again."
        )


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sorts distinct labels: numbers as numbers, before words."""
    return sorted(set(labels), key=_label_key)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Checks and writes a manifest as CSV, beside its place and renamed into it.

    Returns:
        The path.

    Raises:
        UserError: `ManifestTiles` would refuse it.
    """
    check_table(table.reset_index(drop=True), path)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return path


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
            f"{path} names the tile {paths[outside.idxmax()]!r}: expected paths below the root and "
            "relative to it, because the embeddings are stored under them."
        )
    if (twice := paths.duplicated()).any():
        raise UserError(
            f"{path} lists {twice.sum():,} tiles twice, the first is {paths[twice.idxmax()]}. "
            "Take the second ones out."
        )
    # eva names the file of an embedding after the tile's, without its suffix.
    stems = pd.Series([posixpath.splitext(name)[0] for name in paths], paths.index)
    if (same := stems.duplicated(keep=False)).any():
        first, second = paths[stems == stems[same.idxmax()]].iloc[:2]
        raise UserError(
            f"{path} lists {first} and {second}, which differ in their suffix only: their "
            "embeddings would share a file. Rename one."
        )


def _check_splits(table: pd.DataFrame, path: Path) -> None:
    counts = pd.crosstab(table["label"], table["split"])
    if unknown := sorted(set(counts.columns) - set(SPLITS)):
        raise UserError(
            f"{path} has rows of the split {unknown[0]!r}: expected {', '.join(SPLITS)}."
        )
    if len(counts.columns) > 1:
        for label in sort_labels(counts.index):
            _check_label(
                label, [split for split in SPLITS if counts.get(split, {}).get(label)], path
            )
    if "patient" not in table:
        return
    known = table.loc[table["patient"] != "", ["patient", "split"]].drop_duplicates()
    if (shared := known["patient"].duplicated()).any():
        patient = known["patient"][shared.idxmax()]
        splits = known["split"][known["patient"] == patient]
        raise UserError(
            f"The patient {patient} is in the splits {' and '.join(splits)} of {path}, and so are "
            f"{known['patient'][shared].nunique() - 1:,} others: what is learned of a patient "
            "would be tested on the same. Give each patient one split."
        )


def _check_label(label: str, splits: list[str], path: Path) -> None:
    if len(splits) == 1:
        where = f"only in the split {splits[0]!r}"
    elif "train" not in splits:
        where = f"in {' and '.join(splits)}, but not in 'train'"
    else:
        return
    raise UserError(
        f"The label {label!r} of {path} is {where}: expected every label in train and in what is "
        "evaluated. Move patients between the splits, or take the label out."
    )


def _label_key(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
