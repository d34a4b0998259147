"""What a run came to: the student at its start and at its end, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_COMPARED = {"val/cka": "CKA with the teacher", "val/shared_neighbours": "shared neighbours"}


def describe_outcome(start: Mapping[str, float], end: Mapping[str, float]) -> str:
    """Describes the student from start to end in one line; "" if nothing was validated.

    Args:
        start: Figures of the validation before the first step; may be empty.
        end: Figures of the last validation; may be empty.

    Examples:
        >>> start = {"val/cka": 0.846, "val/shared_neighbours": 0.46, "val/effective_rank": 68.7}
        >>> end = {"val/cka": 0.92, "val/cka_low": 0.91, "val/cka_high": 0.93, "tiles": 2048}
        >>> end |= {"val/shared_neighbours": 0.55, "val/effective_rank": 70.2, "patients": 20}
        >>> describe_outcome(start, end | {"val/effective_rank_teacher": 66.3})
        'CKA with the teacher 0.846 → 0.920 (0.910 to 0.930), shared neighbours 0.460 → 0.550, \
effective rank 69 → 70 (teacher 66), on 2,048 tiles of 20 held-out patients'
    """
    parts = []
    for name, title in _COMPARED.items():
        if name in end:
            text = f"{title} {_arrow(start.get(name), end[name], '.3f')}"
            if f"{name}_low" in end:
                text += f" ({end[f'{name}_low']:.3f} to {end[f'{name}_high']:.3f})"
            parts.append(text)
    rank = "val/effective_rank"
    if rank in end:
        teacher = f" (teacher {end[f'{rank}_teacher']:.0f})" if f"{rank}_teacher" in end else ""
        parts.append(f"effective rank {_arrow(start.get(rank), end[rank], '.0f')}{teacher}")
    if not parts:
        return ""
    patients = f" of {end['patients']:,.0f} held-out patients" if "patients" in end else ""
    return f"{', '.join(parts)}, on {end['tiles']:,.0f} tiles{patients}"


def find_decline(
    start: Mapping[str, float],
    end: Mapping[str, float],
    change: Mapping[str, Sequence[float | None]],
) -> str | None:
    """Says in what the student is worse than its start; None if it is not.

    It is worse if CKA or the shared neighbours with the first teacher declined and neither
    improved. Where an interval of the change is known, a change within it counts as none.

    Args:
        start: Figures of the validation before the first step; may be empty.
        end: Figures of the last validation; may be empty.
        change: Differences with their intervals, see `RunRecord`.
    """
    declined, improved = _compare(start, end, change)
    return ", ".join(declined) if declined and not improved else None


def find_contradiction(
    start: Mapping[str, float],
    end: Mapping[str, float],
    change: Mapping[str, Sequence[float | None]],
) -> str | None:
    """Says what of CKA and shared neighbours declined while the other improved; None otherwise.

    Args:
        start: As in `find_decline`.
        end: As in `find_decline`.
        change: As in `find_decline`.
    """
    declined, improved = _compare(start, end, change)
    return f"{declined[0]}, but {improved[0]}" if declined and improved else None


def _compare(
    start: Mapping[str, float],
    end: Mapping[str, float],
    change: Mapping[str, Sequence[float | None]],
) -> tuple[list[str], list[str]]:
    """The figures that declined, and those that improved."""
    declined, improved = [], []
    for name, title in _COMPARED.items():
        difference, low, high = change.get(name, (None, None, None))
        if difference is None or name not in start or name not in end:
            continue
        text = f"{title} {start[name]:.3f} → {end[name]:.3f}"
        if (difference if high is None else high) < 0:
            declined.append(text)
        if (difference if low is None else low) > 0:
            improved.append(text)
    return declined, improved


def _arrow(before: float | None, after: float, form: str) -> str:
    return format(after, form) if before is None else f"{before:{form}} → {after:{form}}"
