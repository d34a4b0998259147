"""What `training.py` found, as numbers and as tables."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

LABELS = {
    "eva": "eva fit",
    "bare": "bare loop",
    "compiled": "compiled",
    "timm": "timm",
    "lightly": "LightlyTrain",
    "loader": "loader alone",
}


def summarise(
    windows: dict[str, list[dict[str, Any]]], batch_size: int, flops: int, product_flops: int
) -> dict[str, Any]:
    """Tiles/s of each way and round, and quartiles of its ratios to bare loop and limit.

    Args:
        windows: What each way's clock has written, one a round; none where it failed.
        batch_size: Tiles of a step.
        flops: Floating-point operations for a tile.
        product_flops: Floating-point operations of a step of `limit`.
    """
    per_second = {
        name: [window["steps"] / window["seconds"] for window in rounds]
        for name, rounds in windows.items()
    }
    limit = [rate * product_flops for rate in per_second.pop("limit")]
    bare = per_second["bare"]
    ways: dict[str, Any] = {}
    for name, rates in per_second.items():
        if not rates:
            ways[name] = None
            continue
        tiles = [rate * batch_size for rate in rates]
        found: dict[str, Any] = {
            "tiles_per_second": tiles,  # one a round
            "median": statistics.median(tiles),
            "peak_memory_bytes": max(window["peak_memory_bytes"] for window in windows[name]),
        }
        if name != "loader":
            found["of_bare"] = ratio_quartiles(rates, bare)
            found["of_limit"] = ratio_quartiles([rate * flops for rate in tiles], limit)
        ways[name] = found
    return {"batch_size": batch_size, "limit_flops_per_second": limit, "ways": ways}


def host_parts(windows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of the host a step, by part: medians over the windows of `eva fit`."""
    parts: dict[str, list[float]] = {}
    for window in windows:
        seconds = dict(window["host_seconds"])
        seconds["Lightning and the rest"] = window["seconds"] - sum(seconds.values())
        for name, value in seconds.items():
            parts.setdefault(name, []).append(value / window["steps"])
    return {name: statistics.median(values) for name, values in parts.items()}


def print_speeds(found: dict[str, Any], flops: int, title: str) -> None:
    """Prints tiles/s of each way beside the limit; in brackets the middle half of the rounds."""
    table = Table(title=title)
    for column in ("way", "tiles/s", "min to max", "of bare loop", "of limit", "GB"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, way in found["ways"].items():
        if name == "loader":
            table.add_section()
        if way is None:
            table.add_row(LABELS[name], "failed")
            continue
        rates = way["tiles_per_second"]
        table.add_row(
            LABELS[name],
            _number(way["median"]),
            f"{_number(min(rates))} to {_number(max(rates))}",
            share_text(way.get("of_bare"), spread=True),
            share_text(way.get("of_limit")),
            f"{way['peak_memory_bytes'] / 1e9:.1f}",
        )
    if limit := found["limit_flops_per_second"]:
        middle = statistics.median(limit)
        low, high = min(limit) / 1e12, max(limit) / 1e12
        table.caption = (
            f"limit: {middle / 1e12:.3g} TFLOP/s ({low:.3g} to {high:.3g}) in a matrix product, "
            f"{flops / 1e9:,.1f} GFLOP a tile: {_number(middle / flops)} tiles/s"
        )
    Console().print(table)


def print_parts(parts: dict[str, float], title: str) -> None:
    """Prints where the seconds of a step go."""
    table = Table(title=title)
    for column in ("part", "ms a step", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(parts.values())
    for name, seconds in parts.items():
        table.add_row(name, f"{1000 * seconds:,.1f}", f"{seconds / total:.1%}")
    Console().print(table)


def ratio_quartiles(values: list[float], others: list[float]) -> list[float] | None:
    """Quartiles over the rounds of the ratios within a round; None where the other one failed."""
    if not others:
        return None
    ratios = [a / b for a, b in zip(values, others, strict=True)]
    return np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()


def share_text(quartiles: list[float] | None, spread: bool = False) -> str:
    """The median, with the middle half in brackets where that is asked for."""
    if quartiles is None:
        return ""
    low, middle, high = quartiles
    return f"{middle:.3f}" + (f" ({low:.2f}-{high:.2f})" if spread else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
