"""Removes the folders of a user's machine from what is published."""

from __future__ import annotations

import re
from typing import Any

_PATH = re.compile(r"(?P<before>(?:local-dir:|file://)?)(?P<path>[/~].*)", re.DOTALL)


def without_paths(value: Any) -> Any:
    """Replaces each absolute path by its last part, in a value and all that it contains.

    Args:
        value: Strings, numbers, and dictionaries and lists of them.

    Examples:
        >>> without_paths({"teacher": "local-dir:/home/ann/h0", "root": ["/data/brca/", "slides"]})
        {'teacher': 'local-dir:h0', 'root': ['brca', 'slides']}
    """
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_paths(part) for part in value)
    if isinstance(value, str) and (match := _PATH.fullmatch(value)):
        return match["before"] + match["path"].rstrip("/").rpartition("/")[2]
    return value
