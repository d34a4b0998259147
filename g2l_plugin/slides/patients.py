"""Whether two names are of one patient."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

UNKNOWN = "unknown"
"""Entry of a list of hashed patients: there are others, who are not known."""

_BARCODE = re.compile(
    r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE | re.ASCII
)
_HASH_LENGTH = 16


def clean_patient(name: str) -> str:
    """Writes a patient's name as people mean it, so that equal names are of one patient.

    Spreadsheets add spaces, and pandas writes numbers as 7.0 once one of them is missing.

    Examples:
        >>> from g2l_plugin.slides.patients import clean_patient
        >>> clean_patient("P1 "), clean_patient("7.0"), clean_patient("007")
        ('P1', '7', '007')
    """
    return re.sub(r"^(\d+)\.0+$", r"\1", " ".join(name.split()))


def find_barcode(name: str) -> str:
    """Finds the patient of the first TCGA barcode in a name; "" if there is none.

    A barcode starts with project, tissue source site and participant, who is named by these 12
    characters: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/

    Examples:
        >>> from g2l_plugin.slides.patients import find_barcode
        >>> find_barcode("TCGA-A1-A0SB-01Z-00-DX1"), find_barcode("P1")
        ('TCGA-A1-A0SB', '')
    """
    match = _BARCODE.search(name)
    return match[0].upper() if match else ""


def hash_patient(name: str) -> str:
    """Hashes a patient's name, so that two cohorts are compared without their names.

    It is the start of the SHA-256 of the TCGA barcode of the patient, or else of the clean name. It
    does not hide a short name, which can be guessed.

    Returns:
        16 hexadecimal digits.

    Examples:
        >>> from g2l_plugin.slides.patients import hash_patient
        >>> hash_patient("TCGA-A1-A0SB") == hash_patient("tcga-a1-a0sb-01Z-00-DX1")
        True
    """
    identity = find_barcode(name) or clean_patient(name)
    return hashlib.sha256(identity.encode()).hexdigest()[:_HASH_LENGTH]


def list_patients(names: Iterable[str]) -> list[str]:
    """Lists the hashes of patients, sorted; `UNKNOWN` is last if a name is empty."""
    return join_patients(hash_patient(name) if name else UNKNOWN for name in names)


def join_patients(*lists: Iterable[str]) -> list[str]:
    """Joins lists of `list_patients` to one.

    Examples:
        >>> from g2l_plugin.slides.patients import join_patients
        >>> join_patients(["0a", "unknown"], ["0a", "b1"])
        ['0a', 'b1', 'unknown']
    """
    return sorted({*itertools.chain(*lists)}, key=lambda entry: (entry == UNKNOWN, entry))


def is_patient_list(entries: Sequence[str]) -> bool:
    """Says whether these are entries of `list_patients`, of at least one patient."""
    pattern = re.compile(rf"[0-9a-f]{{{_HASH_LENGTH}}}|{UNKNOWN}")
    return bool(entries) and all(pattern.fullmatch(entry) for entry in entries)
