"""The cohort: which slides of a folder or a list are used, chosen with a seed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.slides.dicom import one_per_series
from g2l_plugin.slides.patients import clean_patient
from g2l_plugin.slides.slide_list import SLIDE_SUFFIXES, ListedSlide, is_slide, read_slide_list

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
        mpp: Microns per pixel of level 0 according to the list, which go before what the file says;
            or None.
    """

    slide: str
    patient: str = ""
    centre: str = ""
    section: str = ""
    bytes: int | None = None
    md5: str = ""
    mpp: float | None = None


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
        slides: Paths relative to `root`, or a file that lists them: one path per line, a table with
            a column `slide` (e.g. the one that an index writes) and, if known, `patient`, `centre`
            and `mpp`, a manifest or sample sheet of GDC, or a list for CLAM or TRIDENT. A name may
            lack its ending (.svs). A slide that is listed twice counts once.
        n_slides: How many slides to choose, 1 or more. None, or more than exist, chooses all.
        seed: Seed of the choice.
        one_per_patient: Whether to use at most one slide per patient.

    Returns:
        The slides, sorted by name.

    Raises:
        UserError: There are no slides, `n_slides` is below 1, or the list cannot be read.

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
    if n_slides is not None and n_slides < 1:
        raise UserError(
            f"{n_slides} slides cannot be chosen. Give 1 or more, or choose all: N_SLIDES=null "
            "(`n_slides`), --n-slides all."
        )
    root = Path(root).expanduser()
    if slides is None:
        found = _find_slides(root)
    elif isinstance(slides, (str, Path)):
        found = _one_per_series(_read_list(Path(slides).expanduser(), root), root)
    else:
        names = dict.fromkeys(str(PurePosixPath(name)) for name in slides)
        found = _one_per_series([describe_slide(name) for name in names], root)
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
    names = [field.name for field in dataclasses.fields(CohortSlide)]
    # Text is quoted, because a name may start with a space.
    writer = csv.DictWriter(buffer, names, quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(dataclasses.asdict(slide) for slide in slides)
    write_text(path, buffer.getvalue(), errors="surrogateescape")


def read_cohort(path: Path) -> list[CohortSlide]:
    """Reads a cohort that `write_cohort` wrote."""
    return [_describe(listed, listed.name) for listed in read_slide_list(path)]


def check_slide_folder(root: Path) -> None:
    """Checks that the folder of the slides is one.

    Raises:
        UserError: It is missing, or a file.
    """
    if not root.is_dir():
        given = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"Slide folder {root} {given}. Give the folder of your slides "
            "(SLIDES_ROOT=/path/to/slides)."
        )


def _find_slides(root: Path) -> list[CohortSlide]:
    check_slide_folder(root)
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
    folder = _Folder(root)
    slides: dict[str, CohortSlide] = {}
    for listed in read_slide_list(path):
        slide = _describe(listed, folder.locate(listed))
        if slides.setdefault(slide.slide, slide) != slide:
            raise UserError(
                f"The list of slides {path} has {slide.slide} again in line {listed.line}, with "
                "other values. Remove one of the lines."
            )
    return list(slides.values())


def _describe(listed: ListedSlide, name: str) -> CohortSlide:
    described = describe_slide(name)
    return CohortSlide(
        name,
        clean_patient(listed.patient) or described.patient,
        listed.centre or described.centre,
        listed.section or described.section,
        listed.bytes,
        listed.md5,
        listed.mpp,
    )


class _Folder:
    """The folder of the slides, in which those of a list are found."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def locate(self, listed: ListedSlide) -> str:
        """Returns the path of a listed slide relative to the folder, whether it exists or not.

        Raises:
            UserError: The name lacks its ending, and several slides have it.
        """
        plain = listed.name.strip()
        if listed.id:
            # The GDC client downloads each file into a folder named after its id.
            return plain if os.path.isfile(self._root / plain) else f"{listed.id}/{plain}"
        for name in (listed.name, plain, plain.replace("\\", "/")):
            if os.path.isfile(self._root / name):
                return self._relative(name)
        if is_slide(plain):
            return self._relative(plain)
        found = self._by_stem.get(plain, [])
        if len(found) > 1:
            raise UserError(
                f"Line {listed.line} of the list of slides names {plain}, but {self._root} has "
                f"{' and '.join(found[:2])}. Give the path with its ending."
            )
        return found[0] if found else self._relative(plain)

    def _relative(self, name: str) -> str:
        path = PurePosixPath(name)
        for root in (self._root.absolute(), self._root.resolve()):
            if path.is_relative_to(root.as_posix()):
                path = path.relative_to(root.as_posix())
        return str(path)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The folder's slides by their names without ending."""
        names = defaultdict(list)
        for slide in _find_slides(self._root):
            path = PurePosixPath(slide.slide)
            for stem in {path.stem, str(path.with_suffix(""))}:
                names[stem].append(slide.slide)
        return names


def _preference(slide: CohortSlide) -> tuple[bool, int]:
    """Sorts tumour before normal tissue, and diagnostic before frozen before unknown sections."""
    match = _BARCODE.search(PurePosixPath(slide.slide).name)
    normal = match is not None and 10 <= int(match["sample"]) <= 19
    return normal, _SECTION_RANKS.get(slide.section[:2], 3)


def _random_key(slide: CohortSlide, seed: int) -> bytes:
    """Returns a random sort key that depends on nothing but the file name and the seed."""
    text = f"{seed}:{PurePosixPath(slide.slide).name}"
    return hashlib.sha256(os.fsencode(text)).digest()
