"""The cohort: which slides of a folder or a list are used, chosen with a seed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.slides.dicom import one_per_series

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

_BARCODE = re.compile(
    r"(?P<patient>TCGA-(?P<centre>[A-Z0-9]{2})-[A-Z0-9]{4})"
    r"-(?P<sample>\d{2})[A-Z](?:-\d{2}[A-Z]?)?(?:-(?P<section>(?:DX|TS|BS|MS)[A-Z0-9]*))?"
)
"""A TCGA slide barcode: project, tissue source site, participant, sample, portion, section."""

_SECTION_RANKS = {"DX": 0, "TS": 1, "MS": 1, "BS": 2}


@dataclasses.dataclass(frozen=True)
class CohortSlide:
    """A slide of a cohort, described by its name and by the list that contains it.

    Attributes:
        slide: Its path, relative to the folder of the slides.
        patient: The patient, from the TCGA barcode or the list; "" if unknown.
        centre: The centre (TCGA's tissue source site); "" if unknown.
        section: TCGA's section, e.g. DX1 (diagnostic) or TS1 (frozen); "" if unknown.
        bytes: The file size according to the list, or None.
        md5: The file's checksum according to the list, or "".
    """

    slide: str
    patient: str = ""
    centre: str = ""
    section: str = ""
    bytes: int | None = None
    md5: str = ""


def choose_cohort(
    root: str | Path,
    slides: str | Path | Sequence[str] | None = None,
    n_slides: int | None = None,
    seed: int = 0,
    one_per_patient: bool = True,
) -> list[CohortSlide]:
    """Chooses the slides of a cohort.

    The patient is read from the TCGA barcode in the file name, or from the list. A slide whose
    patient is unknown counts as a separate patient. Within a patient, diagnostic sections (DX)
    come before frozen ones (TS, BS), and tumour before normal tissue. Patients with a diagnostic
    slide are chosen first. The seed decides among equals, from the file names alone: the same names
    give the same choice.

    Args:
        root: The folder of the slides. It is searched with its subfolders if `slides` is None.
        slides: Paths relative to `root`, or a file that lists them: one path per line, a CSV with a
            column `slide` (e.g. the one that an index writes), or a GDC manifest.
        n_slides: How many slides to choose. None, or more than exist, chooses all.
        seed: Seed of the choice.
        one_per_patient: Whether to use at most one slide per patient.

    Returns:
        The slides, sorted by name.

    Raises:
        UserError: There are no slides, or the list cannot be read.

    Examples:
        >>> from g2l_plugin import choose_cohort
        >>> from g2l_plugin.demo.generate import make_cohort
        >>> _ = make_cohort("demo", n_slides=4, size=512, show_progress=False)
        >>> [slide.slide for slide in choose_cohort("demo/slides")]
        ['east-001.tiff', 'north-000.tiff', 'south-002.tiff', 'west-003.tiff']
        >>> len(choose_cohort("demo/slides", n_slides=2, seed=7))
        2

        The patient and the centre of a TCGA slide are read from its name:

        >>> (slide,) = choose_cohort(".", ["TCGA-BH-A0B1-01Z-00-DX1.svs"])
        >>> slide.patient, slide.centre
        ('TCGA-BH-A0B1', 'BH')
    """
    root = Path(root).expanduser()
    if slides is None:
        found = _find_slides(root)
    elif isinstance(slides, (str, Path)):
        found = _one_per_series(_read_list(Path(slides).expanduser(), root), root)
    else:
        found = _one_per_series([describe_slide(str(name)) for name in slides], root)
    if not found:
        raise UserError(
            f"No slides in {slides if isinstance(slides, (str, Path)) else root}. Expected files "
            f"that end in {', '.join(sorted(SLIDE_SUFFIXES))}."
        )
    found.sort(key=lambda slide: (_preference(slide), _random_key(slide, seed), slide.slide))
    if one_per_patient:
        by_patient: dict[str, CohortSlide] = {}
        for slide in found:
            by_patient.setdefault(slide.patient or slide.slide, slide)
        found = list(by_patient.values())
    return sorted(found[:n_slides], key=lambda slide: slide.slide)


def describe_slide(name: str) -> CohortSlide:
    """Reads patient, centre and section from the TCGA barcode in a slide's name, if it has one.

    Source: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/
    """
    match = _BARCODE.search(PurePosixPath(name).name)
    if match is None:
        return CohortSlide(name)
    return CohortSlide(name, match["patient"], match["centre"], match["section"] or "")


def write_cohort(path: Path, slides: Sequence[CohortSlide]) -> None:
    """Writes a cohort as a CSV that `read_cohort` and `choose_cohort` can read."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(CohortSlide)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(slide) for slide in slides)
    write_text(path, buffer.getvalue())


def read_cohort(path: Path) -> list[CohortSlide]:
    """Reads a cohort that `write_cohort` wrote."""
    return _read_list(path, Path())


def _find_slides(root: Path) -> list[CohortSlide]:
    if not root.is_dir():
        raise UserError(
            f"Slide folder {root} does not exist. Give the folder of your slides "
            "(SLIDES_ROOT=/path/to/slides)."
        )
    paths = (p for p in root.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
    names = (path.relative_to(root) for path in paths)
    # Hidden files are unfinished downloads or another system's metadata (._a.svs).
    found = [
        describe_slide(name.as_posix())
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    ]
    return _one_per_series(found, root)


def _one_per_series(slides: Sequence[CohortSlide], root: Path) -> list[CohortSlide]:
    """Keeps one file of each DICOM slide."""
    by_name = sorted(slides, key=lambda slide: slide.slide)
    return [by_name[number] for number in one_per_series([root / s.slide for s in by_name])]


def _read_list(path: Path, root: Path) -> list[CohortSlide]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list of slides {path} cannot be read ({error}). Expected one path per line, a "
            "CSV with a column 'slide', or a GDC manifest."
        ) from error
    lines = [line for line in text.splitlines() if line.strip()]
    header = lines[0] if lines else ""
    if header.split("\t")[:2] == ["id", "filename"]:
        rows = csv.DictReader(lines, delimiter="\t")
        return [_slide_from_manifest(row, root) for row in rows if _is_slide(row["filename"])]
    if "slide" in header.split(","):
        return [_slide_from_csv(row) for row in csv.DictReader(lines)]
    return [describe_slide(line.strip()) for line in lines]


def _is_slide(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SLIDE_SUFFIXES


def _slide_from_csv(row: dict[str, str]) -> CohortSlide:
    described = describe_slide(row["slide"])
    return dataclasses.replace(
        described,
        patient=row.get("patient") or described.patient,
        centre=row.get("centre") or described.centre,
        section=row.get("section") or described.section,
        bytes=int(row["bytes"]) if row.get("bytes") else None,
        md5=row.get("md5") or "",
    )


def _slide_from_manifest(row: dict[str, str], root: Path) -> CohortSlide:
    """Describes a slide from a row of a GDC manifest."""
    # The GDC client downloads each file into a folder named after its id.
    flat = root / row["filename"]
    name = row["filename"] if flat.is_file() else f"{row['id']}/{row['filename']}"
    return dataclasses.replace(
        describe_slide(name),
        bytes=int(row["size"]) if row.get("size") else None,
        md5=row.get("md5") or "",
    )


def _preference(slide: CohortSlide) -> tuple[bool, int]:
    """Sorts tumour before normal tissue, and diagnostic before frozen before unknown sections."""
    match = _BARCODE.search(PurePosixPath(slide.slide).name)
    normal = match is not None and 10 <= int(match["sample"]) <= 19
    return normal, _SECTION_RANKS.get(slide.section[:2], 3)


def _random_key(slide: CohortSlide, seed: int) -> bytes:
    """Returns a random sort key that depends on nothing but the file name and the seed."""
    return hashlib.sha256(f"{seed}:{PurePosixPath(slide.slide).name}".encode()).digest()
