"""Paints H&E-like tissue: concentrations of haematoxylin and eosin for a map of tissue classes.

The classes differ in structure (size, shape, density and arrangement of nuclei), not in colour.
Lengths are in pixels of 0.5 microns.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage, spatial

TISSUE_CLASSES = ("tumour", "stroma", "lymphocytes", "gland", "adipose")
"""Names of the classes; a label mask contains index + 1, and 0 off tissue."""

MASK_DOWNSAMPLE = 8
"""Pixels of a slide per pixel of its label mask."""

_COARSE = 4
"""Downsampling factor of the class map."""

_REGION = 340
"""Approximate distance between the centres of two regions."""


@dataclasses.dataclass(frozen=True)
class _Nuclei:
    """Nuclei of a class.

    Attributes:
        spacing: Mean distance between neighbours.
        major: Range of the major half axis.
        minor: Range of the minor half axis.
        darkness: Range of the haematoxylin concentration.
        jitter: Random displacement, as a share of half the spacing.
    """

    spacing: float
    major: tuple[float, float]
    minor: tuple[float, float]
    darkness: tuple[float, float]
    jitter: float = 0.35


_NUCLEI = {
    "tumour": _Nuclei(19, (5.5, 9.5), (4.5, 7.0), (0.5, 1.1)),
    "stroma": _Nuclei(22, (6.0, 9.0), (1.5, 2.2), (0.7, 1.1)),
    "lymphocytes": _Nuclei(10.5, (3.2, 4.0), (3.0, 3.7), (0.9, 1.2)),
}
_GLAND_RING = _Nuclei(0, (4.2, 5.2), (2.8, 3.6), (0.8, 1.1))


def paint_tissue(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints one square section.

    Args:
        size: Side of the section in pixels, a multiple of `MASK_DOWNSAMPLE`.
        rng: Random number generator; the order of the draws defines the pixels.

    Returns:
        Concentrations of haematoxylin and of eosin, float32 (size, size), and the label mask, uint8
        (size / MASK_DOWNSAMPLE,) * 2.
    """
    labels, angles = _lay_out(size, rng)
    fine = labels.repeat(_COARSE, 0).repeat(_COARSE, 1)
    angle = angles.repeat(_COARSE, 0).repeat(_COARSE, 1)
    h = np.zeros((size, size), np.float32)
    e = _smooth_noise(size, 40, rng) * 0.15 + 0.45
    e += _smooth_noise(size, 2, rng) * 0.08
    _paint_fibres(e, fine, angle, rng)
    _paint_glands(h, e, fine, rng)
    _paint_adipose(e, fine, rng)
    for name, nuclei in _NUCLEI.items():
        points = _scatter(size, nuclei, rng)
        points = points[fine[tuple(points.T)] == _label(name)]
        turn = angle[tuple(points.T)] if name == "stroma" else rng.uniform(0, np.pi, len(points))
        _stamp(h, points, turn, nuclei, rng)
    # The stain strength varies over the section, independently of the class.
    h *= 1 + 0.25 * _smooth_noise(size, 60, rng)
    tissue = ndimage.gaussian_filter((fine > 0).astype(np.float32), 2)
    step = MASK_DOWNSAMPLE // _COARSE
    return h * tissue, np.clip(e, 0, None) * tissue, labels[::step, ::step].copy()


def _label(name: str) -> int:
    return TISSUE_CLASSES.index(name) + 1


def _lay_out(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws warped regions: class labels (0 off tissue) and fibre angles, (size / _COARSE,) * 2."""
    coarse = size // _COARSE
    cells = max(size // _REGION, 2)
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 2, indexing="ij"), -1).reshape(-1, 2)
    centres = (grid + rng.uniform(0.2, 0.8, grid.shape)) * coarse / cells
    # All classes are equally frequent, in random order.
    rounds = -(-len(centres) // len(TISSUE_CLASSES))
    order = [rng.permutation(len(TISSUE_CLASSES)) for _ in range(rounds)]
    classes = rng.permutation(np.concatenate(order)[: len(centres)]) + 1
    turns = rng.uniform(0, np.pi, len(centres))
    pixels = np.moveaxis(np.mgrid[:coarse, :coarse], 0, -1).astype(np.float32)
    warp = np.stack([_smooth_noise(coarse, 12, rng) for _ in range(2)], -1) * 7
    _, region = spatial.cKDTree(centres).query(pixels + warp)
    off_centre = np.hypot(*(np.moveaxis(pixels, -1, 0) / coarse - 0.5))
    tissue = off_centre + 0.05 * _smooth_noise(coarse, 25, rng) < 0.46
    return np.where(tissue, classes[region], 0).astype(np.uint8), turns[region].astype(np.float32)


def _smooth_noise(size: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Draws noise with unit variance and the given correlation length, float32 (size, size)."""
    factor = max(int(scale // 2), 1)
    small = ndimage.gaussian_filter(
        rng.standard_normal((-(-size // factor) + 2,) * 2, dtype=np.float32), scale / factor
    )
    noise = (
        ndimage.zoom(small, factor, order=1)[:size, :size] if factor > 1 else small[:size, :size]
    )
    return (noise - noise.mean()) / noise.std()


def _scatter(size: int, nuclei: _Nuclei, rng: np.random.Generator) -> np.ndarray:
    """Draws points on a jittered hexagonal grid, int (points, 2)."""
    rows = np.arange(0, size, nuclei.spacing * 0.87)
    columns = np.arange(0, size, nuclei.spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2 * nuclei.spacing / 2)[:, None]
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    points += rng.normal(0, nuclei.jitter * nuclei.spacing / 2, points.shape)
    return np.clip(points, 0, size - 1).astype(int)


def _stamp(
    h: np.ndarray,
    points: np.ndarray,
    turns: np.ndarray,
    nuclei: _Nuclei,
    rng: np.random.Generator,
    variants: int = 160,
) -> None:
    """Paints a nucleus at each point: of a set of rotated stamps, the one nearest to its angle."""
    half = int(nuclei.major[1]) + 3
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angles = np.linspace(0, np.pi, variants, endpoint=False)
    stamps = []
    for angle in angles:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        major, minor = rng.uniform(*nuclei.major), rng.uniform(*nuclei.minor)
        radius = np.sqrt((along / major) ** 2 + (across / minor) ** 2)
        body = 1 / (1 + np.exp((radius - 1) * minor * 1.5))
        chromatin = 1 + 0.3 * ndimage.gaussian_filter(rng.standard_normal(x.shape), 1) * 3
        stamps.append((body * chromatin * rng.uniform(*nuclei.darkness)).astype(np.float32))
    chosen = (np.round(turns / np.pi * variants).astype(int)) % variants
    size = len(h)
    for (row, column), number in zip(points, chosen, strict=True):
        top, left = max(row - half, 0), max(column - half, 0)
        bottom, right = min(row + half + 1, size), min(column + half + 1, size)
        stamp = stamps[number][
            top - row + half : bottom - row + half, left - column + half : right - column + half
        ]
        area = h[top:bottom, left:right]
        np.maximum(area, stamp, out=area)


def _paint_fibres(
    e: np.ndarray, labels: np.ndarray, angle: np.ndarray, rng: np.random.Generator
) -> None:
    """Paints wavy eosin fibres along the angle of each stroma region."""
    inside = labels == _label("stroma")
    y, x = np.nonzero(inside)
    across = y * np.cos(angle[inside]) - x * np.sin(angle[inside])
    wave = _smooth_noise(len(e), 16, rng)[inside] * 3
    e[inside] += 0.22 * np.sin((across + wave) * 2 * np.pi / 9)


def _paint_glands(
    h: np.ndarray, e: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> None:
    """Paints unstained lumens, each in a ring of nuclei that point outwards."""
    size, spacing = len(e), 58.0
    centres = _scatter(size, _Nuclei(spacing, (0, 0), (0, 0), (0, 0), jitter=0.12), rng)
    centres = centres[labels[tuple(centres.T)] == _label("gland")]
    if not len(centres):
        return
    radii = rng.uniform(11, 17, len(centres))
    y, x = np.nonzero(labels == _label("gland"))
    distance, nearest = spatial.cKDTree(centres).query(np.stack([y, x], axis=1))
    e[y, x] *= 1 / (1 + np.exp((radii[nearest] - distance) * 1.2))
    rings, around_lumen = [], []
    for centre, radius in zip(centres, radii, strict=True):
        n = int(2 * np.pi * (radius + 7) / 8.5)
        around = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 0.15, n)
        ring = np.stack([np.sin(around), np.cos(around)], axis=1) * (radius + 7)
        rings.append(centre + ring + rng.normal(0, 0.8, ring.shape))
        around_lumen.append(around % np.pi)
    points = np.clip(np.concatenate(rings), 0, size - 1).astype(int)
    turns = np.concatenate(around_lumen)
    keep = labels[tuple(points.T)] == _label("gland")
    _stamp(h, points[keep], turns[keep], _GLAND_RING, rng)


def _paint_adipose(e: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Paints empty round cells with thin walls."""
    centres = _scatter(len(e), _Nuclei(42, (0, 0), (0, 0), (0, 0), jitter=0.4), rng)
    y, x = np.nonzero(labels == _label("adipose"))
    if not len(y):
        return
    distance, _ = spatial.cKDTree(centres).query(np.stack([y, x], axis=1), k=2)
    wall = np.exp(-(((distance[:, 1] - distance[:, 0]) / 2.5) ** 2))
    e[y, x] = (0.14 + 0.6 * wall).astype(np.float32)
