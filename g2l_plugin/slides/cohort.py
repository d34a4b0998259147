"""Which slides: N of a folder or a list, one per patient, chosen with a seed and written down."""

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
    """A slide of a cohort, by what its name and a list say of it.

    Attributes:
        slide: Its path, relative to the folder of the slides.
        patient: The patient, "" where unknown; from the TCGA barcode or the list.
        centre: The centre (TCGA's tissue source site), "" where unknown.
        section: TCGA's section, as DX1 (diagnostic) or TS1 (frozen), "" where unknown.
        bytes: The file's size as the list has it; None where it has none.
        md5: The file's checksum as the list has it, "" where it has none.
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

    The patient comes from the TCGA barcode in the name, or from the list; a slide without one
    stands for a patient of its own. Of a patient's slides a diagnostic one (DX) is taken before a
    frozen one (TS, BS) and tumour before normal tissue; patients who have a diagnostic slide are
    taken first. Among equals the seed decides, on names alone: the same for the same names.

    Args:
        root: The folder of the slides; searched with its subfolders when `slides` is None.
        slides: Paths relative to `root`, or a file that lists them: one path a line, a CSV with a
            column `slide` (such as an index writes), or a GDC manifest.
        n_slides: How many to choose; None, or more than there are, takes all.
        seed: Seed of the choice.
        one_per_patient: Whether to take at most one slide of a patient.

    Returns:
        The slides, sorted by name.

    Raises:
        UserError: There is no slide, or the list cannot be read.
    """
    root = Path(root).expanduser()
    if slides is None:
        found = _find(root)
    elif isinstance(slides, (str, Path)):
        found = _read_list(Path(slides).expanduser(), root)
    else:
        found = [describe_slide(str(name)) for name in slides]
    if not found:
        raise UserError(
            f"No slides in {slides if isinstance(slides, (str, Path)) else root}. Expected files "
            f"that end in {', '.join(sorted(SLIDE_SUFFIXES))}."
        )
    found.sort(key=lambda slide: (_rank(slide), _draw(slide, seed), slide.slide))
    if one_per_patient:
        taken: dict[str, CohortSlide] = {}
        for slide in found:
            taken.setdefault(slide.patient or slide.slide, slide)
        found = list(taken.values())
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
    """Writes a cohort as a CSV that `read_cohort` and `choose_cohort` read."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(CohortSlide)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(slide) for slide in slides)
    write_text(path, buffer.getvalue())


def read_cohort(path: Path) -> list[CohortSlide]:
    """Reads a cohort as it was written."""
    return _read_list(path, Path())


def _find(root: Path) -> list[CohortSlide]:
    if not root.is_dir():
        raise UserError(
            f"Slide folder {root} does not exist. Give the folder of your slides "
            "(SLIDES_ROOT=/path/to/slides)."
        )
    paths = (p for p in root.rglob("*") if p.suffix.lower() in SLIDE_SUFFIXES and p.is_file())
    names = (path.relative_to(root) for path in paths)
    # What begins with a dot is a download under way, or another system's litter (._a.svs).
    return [
        describe_slide(name.as_posix())
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    ]


def _read_list(path: Path, root: Path) -> list[CohortSlide]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list of slides {path} cannot be read ({error}). Expected one path a line, a CSV "
            "with a column 'slide', or a GDC manifest."
        ) from error
    lines = [line for line in text.splitlines() if line.strip()]
    header = lines[0] if lines else ""
    if header.split("\t")[:2] == ["id", "filename"]:
        rows = csv.DictReader(lines, delimiter="\t")
        return [_gdc_slide(row, root) for row in rows if _is_slide(row["filename"])]
    if "slide" in header.split(","):
        return [_listed_slide(row) for row in csv.DictReader(lines)]
    return [describe_slide(line.strip()) for line in lines]


def _is_slide(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SLIDE_SUFFIXES


def _listed_slide(row: dict[str, str]) -> CohortSlide:
    described = describe_slide(row["slide"])
    return dataclasses.replace(
        described,
        patient=row.get("patient") or described.patient,
        centre=row.get("centre") or described.centre,
        section=row.get("section") or described.section,
        bytes=int(row["bytes"]) if row.get("bytes") else None,
        md5=row.get("md5") or "",
    )


def _gdc_slide(row: dict[str, str], root: Path) -> CohortSlide:
    """A line of a GDC manifest; the client downloads into a folder named by the id."""
    flat = root / row["filename"]
    name = row["filename"] if flat.is_file() else f"{row['id']}/{row['filename']}"
    return dataclasses.replace(
        describe_slide(name),
        bytes=int(row["size"]) if row.get("size") else None,
        md5=row.get("md5") or "",
    )


def _rank(slide: CohortSlide) -> tuple[bool, int]:
    """Normal tissue after tumour; diagnostic before frozen before unknown sections."""
    match = _BARCODE.search(PurePosixPath(slide.slide).name)
    normal = match is not None and 10 <= int(match["sample"]) <= 19
    return normal, _SECTION_RANKS.get(slide.section[:2], 3)


def _draw(slide: CohortSlide, seed: int) -> bytes:
    """A number of chance for a name: another slide in the folder does not change it."""
    return hashlib.sha256(f"{seed}:{PurePosixPath(slide.slide).name}".encode()).digest()
