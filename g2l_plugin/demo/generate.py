"""Generates an H&E-like cohort of several centres: slides, label masks and a manifest."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE, paint_tissue
from g2l_plugin.errors import UserError
from g2l_plugin.files import new_file, write_text
from g2l_plugin.parallel.jobs import run_jobs

MPP = 0.5
"""Microns per pixel of every slide."""

_FORMAT = 1
"""Version of the generator; raise it when the pixels change, so that old cohorts are replaced."""

_MIN_SIZE = 256
"""Smallest side of a slide in pixels; smaller slides have no room for a tissue region."""

_SPLITS = ("train", "train", "train", "train", "val", "test")
"""Splits of a centre's slides, repeated in this order."""


@dataclasses.dataclass(frozen=True)
class _Centre:
    """Stain and scanner of a centre.

    Attributes:
        haematoxylin: Absorbance of haematoxylin, RGB.
        eosin: Absorbance of eosin, RGB.
        white: Colour of empty glass, RGB in [0, 1].
        gamma: Gamma of the scanner's response.
        blur: Standard deviation of the optical blur, in pixels.
        noise: Standard deviation of the sensor noise, in 1/255.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float


_CENTRES = {
    "north": _Centre((1.05, 1.15, 0.50), (0.12, 0.95, 0.45), (0.96, 0.96, 0.97), 1.00, 0.5, 2.0),
    "east": _Centre((1.30, 1.00, 0.45), (0.30, 0.75, 0.20), (0.93, 0.91, 0.94), 1.15, 0.9, 3.0),
    "south": _Centre((0.75, 1.05, 0.70), (0.08, 0.70, 0.70), (0.98, 0.96, 0.92), 0.85, 0.7, 2.5),
    "west": _Centre((1.20, 1.45, 0.35), (0.22, 1.25, 0.75), (0.90, 0.92, 0.95), 1.05, 0.6, 4.0),
}

CENTRES = tuple(_CENTRES)
"""Names of the centres."""


@dataclasses.dataclass(frozen=True)
class DemoSlide:
    """One generated slide.

    Attributes:
        path: The slide, a pyramidal tiled TIFF.
        mask: Its label mask, a PNG downsampled by `MASK_DOWNSAMPLE`.
        centre: Name of its centre.
        split: train, val or test.
    """

    path: Path
    mask: Path
    centre: str
    split: str


def make_cohort(
    root: str | Path,
    n_slides: int = 48,
    seed: int = 0,
    workers: int | None = None,
    size: int = 1536,
    show_progress: bool = True,
) -> list[DemoSlide]:
    """Generates a cohort, unless the folder already has one with the same parameters.

    Args:
        root: Folder for `slides/`, `masks/` and `manifest.csv`.
        n_slides: Number of slides, over all centres and splits.
        seed: Seed; the files do not depend on the number of workers.
        workers: Number of processes; None uses one per CPU core.
        size: Side of the slides in pixels, a multiple of `MASK_DOWNSAMPLE`.
        show_progress: Whether to show a progress bar.

    Returns:
        The slides.

    Raises:
        UserError: `n_slides` is below 1, or `size` is too small or not such a multiple.
    """
    _check(n_slides, size)
    root = Path(root)
    parameters = {"format": _FORMAT, "n_slides": n_slides, "seed": seed, "size": size}
    if _is_complete(root, parameters):
        return load_cohort(root)
    # Removed first, because from here on the cohort in the folder is incomplete.
    (root / "manifest.csv").unlink(missing_ok=True)
    slides = _plan(root, n_slides)
    for folder in {slide.path.parent for slide in slides} | {slide.mask.parent for slide in slides}:
        folder.mkdir(parents=True, exist_ok=True)
    _generate_slides(slides, seed, size, workers, show_progress)
    write_text(root / "cohort.json", json.dumps(parameters) + "\n")
    # Written last, because a folder with a manifest counts as a complete cohort.
    _write_manifest(root, slides)
    return slides


def load_cohort(root: str | Path) -> list[DemoSlide]:
    """Reads the manifest of a generated cohort.

    Raises:
        UserError: The folder has no manifest.
    """
    root = Path(root)
    if not (root / "manifest.csv").is_file():
        raise UserError(
            f"{root} has no generated cohort: {root / 'manifest.csv'} is missing. Generate it with "
            "`DemoTiles.prepare_data`, or check the folder (DATA_ROOT)."
        )
    with (root / "manifest.csv").open(newline="") as file:
        return [
            DemoSlide(root / row["slide"], root / row["mask"], row["centre"], row["split"])
            for row in csv.DictReader(file)
        ]


def scan(h: np.ndarray, e: np.ndarray, centre: str, rng: np.random.Generator) -> np.ndarray:
    """Turns stain concentrations into the image that a centre makes of them.

    Args:
        h: Concentrations of haematoxylin, float (H, W).
        e: Concentrations of eosin, float (H, W).
        centre: One of `CENTRES`.
        rng: Random number generator, of the strength of the stains and the sensor's noise.

    Returns:
        The image by the Beer-Lambert law, uint8 (H, W, 3).
    """
    channels, of = [], _CENTRES[centre]
    strength = rng.uniform(0.8, 1.2, 2)  # staining varies within a centre
    for haematoxylin, eosin, white in zip(of.haematoxylin, of.eosin, of.white, strict=True):
        # In place: each array would be 19 MB more.
        light = h * haematoxylin * strength[0]
        light += e * eosin * strength[1]
        np.exp(np.negative(light, out=light), out=light)
        light *= white
        light = ndimage.gaussian_filter(light, of.blur)
        light **= of.gamma
        light *= 255
        light += rng.standard_normal(light.shape, dtype=np.float32) * of.noise
        channels.append(np.clip(light, 0, 255, out=light).astype(np.uint8))
    return np.stack(channels, axis=-1)


def _check(n_slides: int, size: int) -> None:
    if n_slides < 1:
        raise UserError(
            f"The demo cohort cannot have {n_slides} slides. Set `n_slides` to 1 or more."
        )
    if size < _MIN_SIZE or size % MASK_DOWNSAMPLE:
        raise UserError(
            f"Demo slides cannot have a side of {size} pixels. Set `size` to a multiple of "
            f"{MASK_DOWNSAMPLE}, at least {_MIN_SIZE}."
        )


def _is_complete(root: Path, parameters: dict[str, int]) -> bool:
    if not ((root / "manifest.csv").is_file() and (root / "cohort.json").is_file()):
        return False
    return json.loads((root / "cohort.json").read_text(encoding="utf-8")) == parameters


def _plan(root: Path, n_slides: int) -> list[DemoSlide]:
    slides = []
    for number in range(n_slides):
        centre = CENTRES[number % len(CENTRES)]
        split = _SPLITS[number // len(CENTRES) % len(_SPLITS)]
        name = f"{centre}-{number:03d}"
        slides.append(
            DemoSlide(
                root / "slides" / f"{name}.tiff", root / "masks" / f"{name}.png", centre, split
            )
        )
    return slides


def _generate_slides(
    slides: list[DemoSlide], seed: int, size: int, workers: int | None, show_progress: bool
) -> None:
    jobs = [(slide, number, seed, size) for number, slide in enumerate(slides)]
    progress = tqdm(
        desc="Generating the demo cohort",
        total=len(slides),
        unit="slide",
        disable=not show_progress,
    )
    with progress, contextlib.closing(run_jobs(_generate_slide, jobs, workers)) as results:
        for _, crash in results:
            if crash is not None:
                raise crash
            progress.update()


def _generate_slide(job: tuple[DemoSlide, int, int, int]) -> None:
    slide, number, seed, size = job
    rng = np.random.default_rng([seed, number])
    h, e, labels = paint_tissue(size, rng)
    image = scan(h, e, slide.centre, rng)
    with new_file(slide.path) as partial:
        _write_pyramid(image, partial)
    with new_file(slide.mask) as partial:
        Image.fromarray(labels).save(partial, format="png")


def _write_pyramid(image: np.ndarray, path: Path) -> None:
    """Writes a tiled TIFF with three levels, each half the size of the previous one."""
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            pixels_per_cm = 1e4 / (MPP * 2**level)
            writer.write(
                image,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                predictor=True,
                subfiletype=int(level > 0),
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            image = _halve(image)


def _halve(image: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 pixels, halves rounded to even: `mean` takes nine times as long."""
    height, width = (length // 2 * 2 for length in image.shape[:2])
    rows = image[:height:2, :width].astype(np.uint16) + image[1:height:2, :width]
    total = rows[:, ::2] + rows[:, 1::2]
    return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint8)


def _write_manifest(root: Path, slides: list[DemoSlide]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["slide", "mask", "centre", "split", "mpp"])
    for slide in slides:
        paths = (slide.path.relative_to(root).as_posix(), slide.mask.relative_to(root).as_posix())
        writer.writerow([*paths, slide.centre, slide.split, MPP])
    write_text(root / "manifest.csv", buffer.getvalue())
