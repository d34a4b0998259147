"""The HDF5 file of a slide's embeddings, in the layouts that other tools read.

- `trident`: `features` (N, D), and `coords` (N, 2) in pixels of level 0. Read by TRIDENT, and by
  CLAM's `load_from_h5`. Attributes of `coords` have TRIDENT's names; `patch_level` is CLAM's.
  Sources: https://github.com/mahmoodlab/TRIDENT (trident/IO.py), https://github.com/mahmoodlab/CLAM
  (dataset_modules/dataset_generic.py).
- `stamp`: `feats` (N, D), and `coords` (N, 2) in microns. Source:
  https://github.com/KatherLab/STAMP (src/stamp/preprocessing, src/stamp/modeling/data.py).

No file can be both: `coords` has pixels in one and microns in the other.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from loguru import logger

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import flush_to_disk, new_file, printable
from g2l_plugin.slides.slide import ReadPlan
from g2l_plugin.slides.tile_grid import SlideRecord

LAYOUTS = {"trident": "features", "stamp": "feats"}
"""The layouts, and the name of the embeddings in each."""

DTYPES = ("float32", "float16")
"""What embeddings may be stored as."""

_MPP_AT_1X = 10.0
"""Microns per pixel times magnification, as TRIDENT counts: 0.5 at 20x."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the files of one folder share; each is an attribute of every file.

    Attributes:
        model_sha256: Hash of the weights.
        model_output: Which tokens the embedding is made of, see `Output`.
        model_mean: Normalisation mean, RGB.
        model_std: Normalisation standard deviation, RGB.
        model_input_size: Side of the images that the model saw, in pixels: tiles are resized to it.
        tile_size: Side of a tile, in pixels at `mpp`.
        mpp: Microns per pixel of the tiles.
        precision: Lightning's name: 32-true or bf16-mixed.
        layout: The layout.
        dtype: What embeddings are stored as.
    """

    model_sha256: str
    model_output: str
    model_mean: tuple[float, ...]
    model_std: tuple[float, ...]
    model_input_size: int
    tile_size: int
    mpp: float
    precision: str
    layout: str
    dtype: str

    def __post_init__(self) -> None:
        """Checks the layout and the dtype.

        Raises:
            UserError: There is no such.
        """
        for name, value, choices in (
            ("layout", self.layout, LAYOUTS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in choices:
                raise UserError(f"`{name}` is {value!r}. Expected {' or '.join(choices)}.")


def write_file(
    path: Path,
    embeddings: np.ndarray,
    xy: np.ndarray,
    record: SlideRecord,
    settings: Settings,
    facts: Mapping[str, Any],
) -> None:
    """Writes a slide's file.

    Args:
        path: The file, `<slide id>.h5`.
        embeddings: (N, D).
        xy: Upper left corners of the tiles in pixels of level 0, (N, 2).
        record: The slide's record in the index.
        settings: What the files of the folder share.
        facts: More attributes of the file.
    """
    assert record.plan is not None
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        partial.unlink(missing_ok=True)  # of a process that was killed
    with new_file(path) as partial:
        with h5py.File(partial, "w") as file:
            file.create_dataset(LAYOUTS[settings.layout], data=embeddings.astype(settings.dtype))
            if settings.layout == "stamp":
                side = record.plan.level0_size[0] * record.mpp
                file["coords"] = (xy * record.mpp).astype(np.float32)
                file.attrs.update(
                    unit="um",
                    tile_size_um=side,
                    tile_size_px=settings.tile_size,
                    extractor=facts["model_source"],
                    feat_type="tile",
                )
            else:
                file["coords"] = xy.astype(np.int64)
                place = {"name": printable(path.stem), "savetodir": printable(str(path.parent))}
                file["features"].attrs.update(place | {"encoder": facts["model_source"]})
                file["coords"].attrs.update(place | _trident(record, record.plan, settings))
            file.attrs.update({**dataclasses.asdict(settings), "level0_mpp": record.mpp, **facts})
        flush_to_disk(partial)


def _trident(record: SlideRecord, plan: ReadPlan, settings: Settings) -> dict[str, Any]:
    """Attributes of `coords`. What is not known is left out, as is what would not be true."""
    attributes: dict[str, Any] = {
        "patch_size": settings.tile_size,
        "patch_size_level0": plan.level0_size[0],
        "target_magnification": _whole(_MPP_AT_1X / settings.mpp),
        "overlap": 0,
        "level0_width": record.width,
        "level0_height": record.height,
    }
    if record.objective_power:
        attributes["level0_magnification"] = _whole(record.objective_power)
    if plan.read_size == (settings.tile_size, settings.tile_size):
        # CLAM reads `patch_size` pixels of this level: elsewhere that would be another area.
        attributes["patch_level"] = plan.level
    return attributes


def _whole(value: float) -> int | float:
    """A magnification as people write it: 20, and not 20.0."""
    return int(value) if float(value).is_integer() else value


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Reads the attributes of a file, and its number of tiles as `n_tiles`.

    Returns:
        None if there is no such file, or it is damaged.
    """
    try:
        with h5py.File(path) as file:
            name = next((name for name in LAYOUTS.values() if name in file), None)
            return dict(file.attrs) | {"n_tiles": len(file[name]) if name else 0}
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning(f"{path} is damaged and made again ({in_one_line(error)}).")
        return None


def refuse_others(folder: Path, settings: Settings, source: str) -> None:
    """Refuses a folder with the embeddings of another model, or of other settings.

    Args:
        folder: The folder; it may be missing.
        settings: The settings of now.
        source: The model's source, for the message.

    Raises:
        UserError: A file differs. The message names the first, and what differs.
    """
    advice = "Give another --output, or move the file away."
    for path in sorted(folder.glob("*.h5")):
        if (found := read_attributes(path)) is None:
            continue
        if (sha256 := found.get("model_sha256")) is None:
            raise UserError(f"{path} was not written by g2l embed. {advice}")
        if sha256 != settings.model_sha256:
            raise UserError(
                f"{path} has embeddings of another model, {found['model_source']} (sha256 "
                f"{sha256[:12]}), and not of {source} ({settings.model_sha256[:12]}). {advice}"
            )
        for name, value in dataclasses.asdict(settings).items():
            if not np.array_equal(found[name], value):
                raise UserError(
                    f"{path} has embeddings of other settings: `{name}` is {found[name]} there, "
                    f"and {value} now. {advice}"
                )
