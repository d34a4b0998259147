"""The folder of an export, and the file in it that says what it was made of."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_folder, write_text

RECORD = "export.json"
"""File that says what an export was made of."""


def check_place(folder: Path) -> None:
    """Raises a UserError if a folder exists and holds no export."""
    if folder.exists() and not (folder / RECORD).is_file():
        raise _exists(folder)


@contextlib.contextmanager
def new_export(
    folder: Path, record: dict[str, Any]
) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Yields a new folder to fill, and the cost of its precision, to fill too.

    The folder is None if the place holds this very export; the cost is the recorded one then.

    Args:
        folder: The folder, which exists once the block succeeds.
        record: What the export is made of.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    if folder.exists():
        try:
            old = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            files, cost = old.pop("files"), old.pop("cost", {})
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise _exists(folder) from error
        if old != json.loads(json.dumps(record)) or not all((folder / f).is_file() for f in files):
            raise _exists(folder)
        yield None, cost
        return
    cost = {}
    try:
        with new_folder(folder) as partial:
            yield partial, cost
            files = sorted(str(f.relative_to(partial)) for f in partial.rglob("*") if f.is_file())
            facts = record | ({"cost": cost} if cost else {}) | {"files": files}
            write_text(partial / RECORD, json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {in_one_line(error)}. Choose another --output; nothing "
            "was left behind."
        ) from error


def _exists(folder: Path) -> UserError:
    return UserError(
        f"{folder} exists and does not hold this export. Choose another --output, or delete it."
    )
