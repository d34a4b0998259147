"""Finding the parts of a download, and saying which one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from g2l_plugin.errors import UserError


def find_root(
    download: Path, parts: Sequence[str], source: str, below: Sequence[str] = ("",)
) -> Path:
    """Finds the folder of a download that holds its parts.

    Args:
        download: What the user gave.
        parts: Files and folders that must be there, relative to the folder.
        source: Where the download is to be had, and how it is unpacked.
        below: Folders below `download` that may hold the parts.

    Returns:
        The folder.

    Raises:
        UserError: There is no such folder: the part that the likeliest one lacks is named.
    """
    if not download.is_dir():
        raise UserError(f"The folder {download} does not exist. Expected {source}.")
    folders = [download / name for name in below if (download / name).is_dir()]
    missing = {
        folder: [part for part in parts if not (folder / part).exists()] for folder in folders
    }
    best = min(folders or [download], key=lambda folder: len(missing.get(folder, parts)))
    if lacks := missing.get(best, list(parts)):
        raise UserError(f"{best / lacks[0]} is missing. Expected {source}.")
    return best


def relative(path: Path, root: Path) -> str:
    """A path as a manifest says it."""
    return path.relative_to(root).as_posix()
