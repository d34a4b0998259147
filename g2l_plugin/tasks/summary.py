"""What a manifest holds, as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from g2l_plugin.tasks.manifest_table import SPLITS, sort_labels


def print_summary(manifest: Path) -> None:
    """Prints rows per label and split, and how many patients and centres each split has."""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    splits = [split for split in SPLITS if (rows["split"] == split).any()]
    what = "slides" if "target" in rows else "tiles"
    table = Table(what, *splits, "all", title=f"What {manifest.name} lists")
    for column in table.columns[1:]:
        column.justify = "right"
    parts = [rows[rows["split"] == split] for split in splits] + [rows]
    for label in sort_labels(rows["label"]):
        table.add_row(label, *(f"{(part['label'] == label).sum():,}" for part in parts))
    table.add_section()
    table.add_row(f"all {what}", *(f"{len(part):,}" for part in parts))
    for name in ("patient", "centre"):
        if name in rows:
            known = (part[name][part[name] != ""] for part in parts)
            table.add_row(f"{name}s", *(f"{values.nunique():,}" for values in known))
    Console(soft_wrap=True).print(table)


def root_of(manifest: Path, download: Path) -> Path:
    """The folder that a manifest's paths are relative to: its own where tiles were cut into it."""
    first = pd.read_csv(manifest, dtype=str, nrows=1)["path"][0]
    return manifest.parent if (manifest.parent / first).exists() else download
