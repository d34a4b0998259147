"""Whether two names are of one patient."""

from __future__ import annotations

import re


def clean_patient(name: str) -> str:
    """Writes a patient's name as people mean it, so that equal names are of one patient.

    Spreadsheets add spaces, and pandas writes numbers as 7.0 once one of them is missing.

    Examples:
        >>> from g2l_plugin.slides.patients import clean_patient
        >>> clean_patient("P1 "), clean_patient("7.0"), clean_patient("007")
        ('P1', '7', '007')
    """
    return re.sub(r"^(\d+)\.0+$", r"\1", " ".join(name.split()))
