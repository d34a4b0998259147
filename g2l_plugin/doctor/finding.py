"""What a check finds."""

from __future__ import annotations

import dataclasses
from typing import Literal

Mark = Literal["ok", "warning", "problem"]
"""A problem stops the run or keeps it from the machine's GPU; a warning is worth knowing."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fact about the machine, in one line.

    Attributes:
        mark: How bad it is.
        fact: What was found, a sentence.
        advice: What to do about it, a sentence or a command; "" if there is nothing to do.
    """

    mark: Mark
    fact: str
    advice: str = ""


def ok(fact: str) -> Finding:
    """A fact that is as the run needs it."""
    return Finding("ok", fact)


def warning(fact: str, advice: str = "") -> Finding:
    """A fact that the user should know, with which the run works."""
    return Finding("warning", fact, advice)


def problem(fact: str, advice: str) -> Finding:
    """A fact that stops the run, or keeps it from the machine's GPU."""
    return Finding("problem", fact, advice)


def gigabytes(n_bytes: float) -> str:
    """Writes a size as a user reads it: GB of 10^9 bytes."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e9:.2f} GB"
