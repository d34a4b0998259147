"""DICOM slides: the files of one series are one slide, and each of them opens as all of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_SERIES_INSTANCE_UID = (0x0020, 0x000E)
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has four bytes; that of the others has two."""

_UNDEFINED = 0xFFFFFFFF
"""The length of a sequence or an item that ends with a delimiter."""


def one_per_series(paths: Sequence[Path]) -> list[int]:
    """Chooses the file that stands for each DICOM slide: the largest of a series, its level 0.

    Args:
        paths: Slides of any format.

    Returns:
        Positions of the files to keep, ascending: also of all that belong to no series.
    """
    largest: dict[str, int] = {}
    for number, path in enumerate(paths):
        series = series_of(path) or f"/{number}"  # no UID has a slash
        other = largest.get(series)
        if other is None or _size(path) > _size(paths[other]):
            largest[series] = number
    return sorted(largest.values())


def series_of(path: Path) -> str:
    """Reads the series instance UID of a DICOM file, or returns "" if it has none.

    Source: https://dicom.nema.org/medical/dicom/current/output/html/part10.html, explicit VR
    little endian, which all encapsulated transfer syntaxes use.
    """
    if path.suffix.lower() != ".dcm":
        return ""
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return _find_series(file)
    except (OSError, struct.error):  # opening the slide tells what is wrong
        pass
    return ""


def _find_series(file: BinaryIO) -> str:
    while True:
        tag, length = _read_header(file)
        if tag == _SERIES_INSTANCE_UID:
            return file.read(length).decode("ascii", "replace").rstrip("\0 ")
        if tag > _SERIES_INSTANCE_UID:  # tags ascend
            return ""
        _skip(file, length)


def _read_header(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Reads tag and length of the next element."""
    group, element, kind, length = struct.unpack("<HH2sH", file.read(8))
    if group == 0xFFFE:  # items and delimiters have no value representation
        return (group, element), int.from_bytes(kind + length.to_bytes(2, "little"), "little")
    if kind in _LONG:
        (length,) = struct.unpack("<I", file.read(4))
    return (group, element), length


def _skip(file: BinaryIO, length: int) -> None:
    """Skips a value; one of undefined length with all that is nested in it, to its delimiter."""
    if length != _UNDEFINED:
        file.seek(length, 1)
        return
    while True:
        tag, length = _read_header(file)
        if tag in ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)):
            return
        _skip(file, length)


def _size(path: Path) -> int:
    return path.stat().st_size
