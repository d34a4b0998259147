"""A list of slides: one path per line, or a table such as spreadsheets, R, pandas and GDC write."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

from g2l_plugin.errors import UserError

SLIDE_SUFFIXES = frozenset(
    {
        ".bif",
        ".czi",
        ".dcm",
        ".mrxs",
        ".ndpi",
        ".scn",
        ".svs",
        ".svslide",
        ".tif",
        ".tiff",
        ".vms",
        ".vmu",
    }
)
"""File name endings of the formats that OpenSlide reads."""

_SLIDE_COLUMNS = ("slide", "slide_id", "slide_path", "wsi", "path", "filename", "file_name")
"""Columns that may name the slide: ours, CLAM's, TRIDENT's and GDC's; the first there is read."""

_GDC_COLUMNS = ("filename", "file_name")
"""The columns of GDC's manifests and sample sheets, which list other files too."""

_COLUMNS = {
    "id": ("id", "file_id"),
    "patient": ("patient", "patient_id", "case_id"),
    "centre": ("centre", "center"),
    "section": ("section",),
    "bytes": ("bytes", "size"),
    "md5": ("md5",),
    "mpp": ("mpp",),
}
"""What is read besides the slide, and the columns that may have it."""

_DELIMITERS = "\t;,"

_MISSING = frozenset({"", "na", "nan", "<na>", "none", "null"})
"""What R, pandas and databases write for no value, in lower case."""

_MPP_LIMITS = (0.02, 20.0)
"""Microns per pixel that a scan may have; outside are nanometres, millimetres and slips."""

_EXPECTED = (
    "one path per line, a table (CSV) with a column 'slide', or a GDC manifest or sample sheet"
)


@dataclasses.dataclass(frozen=True)
class ListedSlide:
    """What a list says of a slide; "" or None where it says nothing.

    Attributes:
        line: The line that says it, from 1.
        name: The path, as written.
        id: GDC's identifier, which names the folder that its client downloads the slide into.
        patient: The patient.
        centre: The centre.
        section: TCGA's section.
        bytes: The file size.
        md5: The file's checksum.
        mpp: Microns per pixel of level 0.
    """

    line: int
    name: str
    id: str = ""
    patient: str = ""
    centre: str = ""
    section: str = ""
    bytes: int | None = None
    md5: str = ""
    mpp: float | None = None


def is_slide(name: str) -> bool:
    """Whether a file name ends as a slide's does."""
    return PurePosixPath(name.strip()).suffix.lower() in SLIDE_SUFFIXES


def read_slide_list(path: Path) -> list[ListedSlide]:
    """Reads a list of slides.

    A table has a header, and its columns are separated by commas, semicolons or tabs. A name that
    is not UTF-8 is read as Python reads it from a folder.

    Raises:
        UserError: The file is not a list, or a line is incomplete or has a value that is none. The
            message names the line, the column and what was expected.
    """
    text = _decode(_read_bytes(path), path)
    lines = list(_plain_lines(text))
    header = lines[0][1] if lines else ""
    if delimiter := _delimiter(header):
        return list(_read_rows(text, lines[0][0], delimiter, path))
    if not is_slide(header) and (found := re.findall(f"[{_DELIMITERS}]", header)):
        columns = [cell.strip(" \"'") for cell in header.split(found[0])]
        raise _unreadable(
            path,
            f"line {lines[0][0]} has the columns {', '.join(map(repr, columns))}, none of which "
            f"names the slide. Expected {_EXPECTED}.",
        )
    return [ListedSlide(number, _unquote(line)) for number, line in lines]


def list_digest(path: Path) -> str:
    """SHA-256 of a list's content.

    Raises:
        UserError: The file cannot be read.
    """
    return hashlib.sha256(_read_bytes(path)).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, f"{error}. Expected {_EXPECTED}.") from error


def _decode(content: bytes, path: Path) -> str:
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # Excel's "Unicode text"
            text = content.decode("utf-16")
        else:
            text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"{error}. Expected {_EXPECTED}.") from error
    if "\0" in text:
        raise _unreadable(path, f"it is not text. Expected {_EXPECTED}.")
    return text


def _plain_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line that is neither empty nor a comment."""
    # Not `splitlines`, which divides at characters that a file name may have.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if line.strip() and (not line.startswith("#") or is_slide(line)):
            yield number, line


def _delimiter(header: str) -> str:
    """What separates the columns of a table's header, or "" if it is not one."""
    found = [
        delimiter
        for delimiter in _DELIMITERS
        if set(_SLIDE_COLUMNS) & set(_column_names(_cells(header, delimiter)))
    ]
    return max(found, key=header.count, default="")


def _cells(header: str, delimiter: str) -> list[str]:
    return next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])


def _column_names(header: Sequence[str]) -> dict[str, int]:
    """The place of each column, by its name in lower case with _ for spaces."""
    names = [re.sub(r"\s+", "_", cell.strip().lower()) for cell in header]
    return {name: place for place, name in reversed(list(enumerate(names)))}


def _read_rows(text: str, first: int, delimiter: str, path: Path) -> Iterator[ListedSlide]:
    """Reads the rows of a table whose header is in line `first`."""
    start = len("".join(re.split(r"(\r\n|\n|\r)", text)[: 2 * (first - 1)]))
    # strict: an open quote would swallow all lines after it.
    rows = csv.reader(
        io.StringIO(text[start:], newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
    )
    line = first
    try:
        columns = _Columns(next(rows), path)
        for cells in rows:
            line = first + rows.line_num - 1
            if any(cell.strip() for cell in cells):
                listed = columns.read(line, cells)
                if is_slide(listed.name) or not columns.of_gdc:
                    yield listed
    except csv.Error as error:
        raise _unreadable(
            path, f"line {line + 1}: {error}. Expected every quote that opens to close."
        ) from error


class _Columns:
    """The columns of a table that are read."""

    def __init__(self, header: Sequence[str], path: Path) -> None:
        self._header = [cell.strip() for cell in header]
        self._path = path
        places = _column_names(header)
        name = next(name for name in _SLIDE_COLUMNS if name in places)
        self.of_gdc = name in _GDC_COLUMNS
        self._places = {"name": places[name]}
        for field, names in _COLUMNS.items():
            if found := [places[name] for name in names if name in places]:
                self._places[field] = found[0]
        if not self.of_gdc:  # in other tables, "id" may be any number
            self._places.pop("id", None)

    def read(self, line: int, cells: list[str]) -> ListedSlide:
        """Reads a row."""
        width = len(self._header)
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if len(cells) != width:
            advice = (
                "The file is cut off there: get it again, or remove the line."
                if len(cells) < width
                else "Put quotes around a name that contains the separator."
            )
            raise _unreadable(
                self._path,
                f"line {line} has {len(cells)} of {width} columns. Expected "
                f"{', '.join(map(repr, self._header))}. {advice}",
            )
        texts = {field: cells[place] for field, place in self._places.items()}
        values = {
            field: "" if text.strip().lower() in _MISSING else text.strip()
            for field, text in texts.items()
        }
        if self.of_gdc:  # one case for each of a file's samples: "TCGA-A1-0001, TCGA-A1-0001"
            cases = re.split(r"\s*,\s*", values.get("patient", ""))
            values["patient"] = ", ".join(dict.fromkeys(cases))
        if not values["name"]:
            self._refuse(line, "name", texts["name"], "the path of a slide")
        return ListedSlide(
            line,
            texts["name"],
            values.get("id", ""),
            values.get("patient", ""),
            values.get("centre", ""),
            values.get("section", ""),
            self._bytes(line, values.get("bytes", "")),
            values.get("md5", ""),
            self._mpp(line, values.get("mpp", "")),
        )

    def _bytes(self, line: int, text: str) -> int | None:
        """Reads a size: 239735, also as 239735.0 (pandas, if any is missing) or 239,735."""
        whole = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.0*)?", text) else text
        value = _number(whole) if whole else 0.0
        if value is None or value < 0 or not value.is_integer():
            self._refuse(line, "bytes", text, "a whole number of bytes, as 239735, or nothing")
        return int(value) or None

    def _mpp(self, line: int, text: str) -> float | None:
        """Reads microns per pixel: 0.25, or 0,25; 0 is what an index writes for unknown."""
        value = _number(text.replace(",", ".")) if text else 0.0
        low, high = _MPP_LIMITS
        if value is None or (value != 0 and not low <= value <= high):
            expected = f"microns per pixel from {low} to {high:g}, as 0.25 for a 40x scan"
            self._refuse(line, "mpp", text, f"{expected}, or nothing")
        return value or None

    def _refuse(self, line: int, field: str, text: str, expected: str) -> NoReturn:
        column = self._header[self._places[field]]
        raise _unreadable(
            self._path, f"line {line}, column {column!r} has {text!r}. Expected {expected}."
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unquote(line: str) -> str:
    """A line of plain paths without the quotes around it, if it has some."""
    text = line.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else line


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"The list of slides {path} cannot be read: {reason}")
