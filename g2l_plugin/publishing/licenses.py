"""The licence of a student: it follows from those of its teacher and of its start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from g2l_plugin.encoders.encoder import Provenance

# By what they ask for, little first: what combines them asks for the most.
_PERMISSIVE = ("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
_CREATIVE_COMMONS = re.compile(r"cc-by(?P<nc>-nc)?(?P<sa>-sa)?(?P<nd>-nd)?-4\.0$")
UNSETTLED = "other"
"""The Hub's identifier for a licence that it has no name for."""


@dataclasses.dataclass(frozen=True)
class StudentLicense:
    """A student's licence.

    Attributes:
        identifier: As the Hub writes it; `other` where it is not settled.
        restrictions: What its uploader has to know, a sentence each; none for a permissive one.
    """

    identifier: str
    restrictions: tuple[str, ...] = ()


def license_of(origins: Iterable[tuple[str, Provenance]]) -> StudentLicense:
    """Derives the licence of what was made from several weights.

    Whether distilled weights are a derivative work of the teacher's is open; it is taken here that
    they are, the careful reading.

    Args:
        origins: What each was (`teacher`, `start`), and its provenance; random weights have no
            licence.
    """
    restrictions: list[str] = []
    permissive = 0
    clauses: set[str] = set()
    settled = True
    for role, provenance in origins:
        if not provenance.pretrained:
            continue
        license = (provenance.license or "").lower()
        name = f"The {role}, {provenance.source},"
        if license in _PERMISSIVE:
            permissive = max(permissive, _PERMISSIVE.index(license))
        elif match := _CREATIVE_COMMONS.match(license):
            clauses |= {"by", *(clause for clause in ("nc", "sa", "nd") if match[clause])}
            if match["nc"]:
                restrictions.append(f"{name} allows no commercial use ({license}).")
            if match["nd"]:
                settled = False
                restrictions.append(
                    f"{name} allows no derivatives to be shared ({license}): ask its owner before "
                    "you publish what was distilled from it."
                )
        else:
            settled = False
            restrictions.append(
                f"{name} has "
                + (f"the licence {license!r}" if license else "no licence on record")
                + ": read its card before you publish what was made from it."
            )
    if not settled:
        return StudentLicense(UNSETTLED, tuple(restrictions))
    if clauses:
        parts = [clause for clause in ("by", "nc", "sa") if clause in clauses]
        return StudentLicense(f"cc-{'-'.join(parts)}-4.0", tuple(restrictions))
    return StudentLicense(_PERMISSIVE[permissive] if permissive else "apache-2.0", ())
