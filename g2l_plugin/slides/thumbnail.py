"""The pictures of an index: a thumbnail of each slide and its tiles, and a page of them all."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw

from g2l_plugin.files import write_text
from g2l_plugin.slides.tissue import outline

_SIDE_LIMITS = (600, 1200)
"""Minimum and maximum of a thumbnail's longest side, in pixels."""

_TISSUE_COLOUR = (0, 130, 60)
_KEPT_COLOUR = (30, 30, 30)
_LEFT_OUT_COLOURS = {"ink": (0, 90, 255), "blurred": (255, 150, 0), "damaged": (230, 0, 0)}


def draw_thumbnail(
    overview: np.ndarray,
    mask: np.ndarray,
    slide_size: tuple[int, int],
    tile_size: tuple[int, int],
    kept: np.ndarray,
    left_out: Mapping[str, np.ndarray],
) -> Image.Image:
    """Draws the outline of the tissue, the tiles that are kept, and those left out crossed.

    Args:
        overview: uint8 RGB (height, width, 3) of the whole slide.
        mask: The tissue, bool (height, width).
        slide_size: Width and height of the slide in pixels of level 0.
        tile_size: Width and height of a tile in pixels of level 0.
        kept: Upper left corners of the tiles in pixels of level 0, (tiles, 2).
        left_out: The same for the tiles that are left out, by reason.
    """
    marked = overview.copy()
    marked[outline(mask)] = _TISSUE_COLOUR
    image = Image.fromarray(marked)
    zoom = np.clip(max(image.size), *_SIDE_LIMITS) / max(image.size)
    image = image.resize([max(round(length * zoom), 1) for length in image.size])
    draw = ImageDraw.Draw(image)
    scale = np.array(image.size) / np.array(slide_size)
    for reason, corners in left_out.items():
        for box in _boxes(corners, tile_size, scale):
            draw.rectangle(box, outline=_LEFT_OUT_COLOURS[reason], width=2)
            draw.line(box, fill=_LEFT_OUT_COLOURS[reason], width=2)
    for box in _boxes(kept, tile_size, scale):
        draw.rectangle(box, outline=_KEPT_COLOUR)
    return image


def write_page(path: Path, rows: Sequence[Mapping[str, Any]], thumbnails: Sequence[Path]) -> None:
    """Writes an HTML page of all slides: those with problems first, then by number of tiles.

    Args:
        path: The page.
        rows: The summary row of each slide.
        thumbnails: The thumbnail of each slide, below the page's folder; it may be missing.
    """
    order = sorted(range(len(rows)), key=lambda n: (rows[n]["outcome"] == "used", rows[n]["tiles"]))
    cards = "\n".join(_card(path, rows[number], thumbnails[number]) for number in order)
    tiles = sum(row["tiles"] for row in rows)
    legend = " · ".join(
        f'<b style="color:rgb{colour}">{reason}</b>' for reason, colour in _LEFT_OUT_COLOURS.items()
    )
    write_text(
        path,
        f"""<!doctype html>
<meta charset="utf-8">
<title>{len(rows)} slides</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 1.5em; color: #222; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); gap: 1em; }}
figure {{ margin: 0; padding: .6em; border: 1px solid #ccc; border-radius: 6px; }}
figure.problem {{ border-color: #c00; background: #fff4f4; }}
img {{ width: 100%; height: 18em; object-fit: contain; background: #f6f6f6; }}
figcaption {{ overflow-wrap: anywhere; }}
</style>
<h1>{len(rows):,} slides, {tiles:,} tiles</h1>
<p>Green: outline of the tissue. Black: tiles that are kept. Crossed: tiles left out, {legend}.</p>
<main>
{cards}
</main>
""",
    )


def _card(page: Path, row: Mapping[str, Any], thumbnail: Path) -> str:
    used = row["outcome"] == "used"
    image = ""
    if thumbnail.is_file():
        link = quote(thumbnail.relative_to(page.parent).as_posix())
        image = f'<a href="{link}"><img loading="lazy" src="{link}"></a>'
    counts = ", ".join(
        f"{row[key]:,} {key.replace('_', ' ')}"
        for key in ("tiles", "little_tissue", "ink", "blurred", "damaged")
        if row[key]
    )
    outcome = "" if used else f"<b>{html.escape(row['outcome'])}</b> {html.escape(row['message'])}"
    return (
        f'<figure class="{"used" if used else "problem"}">{image}<figcaption>'
        f"{html.escape(row['slide'])}<br>{counts}<br>{outcome}</figcaption></figure>"
    )


def _boxes(
    corners: np.ndarray, size: tuple[int, int], scale: np.ndarray
) -> list[tuple[float, float, float, float]]:
    """Left, upper, right and lower edges of tiles in pixels of the thumbnail."""
    start, stop = corners * scale, (corners + np.array(size)) * scale - 1
    return [tuple(box) for box in np.concatenate([start, np.maximum(stop, start)], axis=1).tolist()]
