"""The licence of a student, derived from the licences of its teachers and its start."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import re
from collections.abc import Iterable

from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.encoders.known import find_known
from g2l_plugin.errors import UserError

# From the fewest conditions to the most: the last one that occurs applies to the combination.
_PERMISSIVE = ("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
_CREATIVE_COMMONS = re.compile(r"cc-by(?P<nc>-nc)?(?P<sa>-sa)?(?P<nd>-nd)?-4\.0$")
_IDENTIFIERS = frozenset(
    (importlib.resources.files("g2l_plugin.publishing") / "hub_licenses.txt").read_text().split()
)
"""The Hub's identifiers, https://huggingface.co/docs/hub/repositories-licenses."""

UNSETTLED = "other"
"""The Hub's identifier for a licence that it has no name for."""


def check_license(identifier: str) -> None:
    """Checks that a licence is one that the Hub knows.

    Args:
        identifier: The identifier that a user named.

    Raises:
        UserError: It is not; the message suggests the one that may be meant.

    Examples:
        >>> check_license("cc-by-4.0")
    """
    if identifier in _IDENTIFIERS:
        return
    plain = "-".join(identifier.lower().split())
    close = difflib.get_close_matches(plain, sorted(_IDENTIFIERS), n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"The Hub knows no licence {identifier!r} (LICENSE, --license).{meant} Expected an "
        "identifier of https://huggingface.co/docs/hub/repositories-licenses, or `other`."
    )


@dataclasses.dataclass(frozen=True)
class StudentLicense:
    """A student's licence.

    Attributes:
        identifier: The Hub's identifier; `other` if the licence cannot be derived.
        restrictions: What the uploader must know, one sentence each; empty for a permissive one.
    """

    identifier: str
    restrictions: tuple[str, ...] = ()


def choose_license(origins: Iterable[tuple[str, Provenance]], named: str | None) -> StudentLicense:
    """The licence that a publisher names, with the restrictions that follow from the origins.

    Args:
        origins: See `license_of`.
        named: Identifier; None derives it.

    Raises:
        UserError: The Hub knows no such licence.
    """
    if named:
        check_license(named)
    derived = license_of(origins)
    return dataclasses.replace(derived, identifier=named) if named else derived


def license_of(origins: Iterable[tuple[str, Provenance]]) -> StudentLicense:
    """Derives the licence of weights that were made from other weights.

    It is an open question whether distilled weights are a derivative work of the teacher's. This
    function assumes that they are, the cautious reading.

    Args:
        origins: Role of each origin (`teacher`, `start`) and its provenance. Random weights have no
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
                restrictions.append(f"{name} does not allow commercial use ({license}).")
            if match["nd"]:
                settled = False
                restrictions.append(
                    f"{name} does not allow sharing derivatives ({license}): ask its owner before "
                    "you publish a student distilled from it."
                )
        elif (known := find_known(provenance.source)) and known.non_commercial:
            settled = False
            restrictions.append(
                f"{name} does not allow commercial use (its owner's own licence): read its card "
                "before you publish a student made from it."
            )
        else:
            settled = False
            restrictions.append(
                f"{name} has "
                + (f"the licence {license!r}" if license else "no licence on record")
                + ": read its card before you publish a student made from it."
            )
    if not settled:
        return StudentLicense(UNSETTLED, tuple(restrictions))
    if clauses:
        parts = [clause for clause in ("by", "nc", "sa") if clause in clauses]
        return StudentLicense(f"cc-{'-'.join(parts)}-4.0", tuple(restrictions))
    return StudentLicense(_PERMISSIVE[permissive] if permissive else "apache-2.0", ())
