"""What `g2l prepare` leaves in a folder: the manifest, and where its paths start."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text

MANIFEST = "manifest.csv"
"""Name of the manifest."""

VARIABLES = "variables.json"
"""Variables of the task's config, which find the data: written beside the manifest."""


def write_variables(manifest: Path, download: Path) -> dict[str, str]:
    """Writes the variables that the config of a prepared task needs beside its manifest.

    Args:
        manifest: The manifest.
        download: Folder of the download. The manifest's paths start there, unless tiles were cut:
            then in the manifest's folder.

    Returns:
        DATA_ROOT and MANIFEST_FILE, absolute paths.
    """
    own = (manifest.parent / _first_path(manifest)).exists()
    root = (manifest.parent if own else download).resolve()
    variables = {"DATA_ROOT": str(root), "MANIFEST_FILE": str(manifest.resolve())}
    write_text(manifest.with_name(VARIABLES), json.dumps(variables, indent=2) + "\n")
    return variables


def find_variables(folder: Path) -> dict[str, str]:
    """Finds the variables of a prepared task.

    Args:
        folder: The folder that it was prepared in, or that it was moved to.

    Raises:
        UserError: The manifest is not there, or its first tile or slide is not.
    """
    manifest, written = folder / MANIFEST, folder / VARIABLES
    if not manifest.is_file():
        raise UserError(f"There is no {manifest}.")
    first = _first_path(manifest)
    roots = [folder]
    if written.is_file():
        roots.append(Path(json.loads(written.read_text(encoding="utf-8"))["DATA_ROOT"]))
    root = next((root for root in roots if (root / first).exists()), None)
    if root is None:
        raise UserError(f"{manifest} is there, but not its first row, {roots[-1] / first}.")
    return {"DATA_ROOT": str(root), "MANIFEST_FILE": str(manifest)}


def _first_path(manifest: Path) -> str:
    return pd.read_csv(manifest, dtype=str, nrows=1)["path"][0]
