"""Packing: tiles of slides, or of other images, are written once into shards that stream fast.

A pack is a folder, on a disk or in an object store, with `pack.json` (the settings),
`origins.parquet` (the slides or images) and a folder of shards for each split.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.files import locked, new_file, write_text
from g2l_plugin.parallel.cluster import check_scheduler
from g2l_plugin.slides.cohort import describe_slide
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.image_set import ImageSet, find_images
from g2l_plugin.slides.image_source import ImageTiles, measure_images
from g2l_plugin.slides.index import read_settings
from g2l_plugin.slides.packed_source import ORIGINS, import_litdata
from g2l_plugin.slides.patients import clean_patient
from g2l_plugin.slides.shards import PackableTiles, has_shards, write_shards
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.split import SPLITS, Split, tiles_of_split


def pack_tiles(
    index_dir: str | Path,
    output: str | Path,
    n_val_tiles: int = 2048,
    n_val_patients: int = 20,
    quality: int = 95,
    max_lost: float = 0.01,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Packs the tiles of an index into shards, with training and validation separate.

    Validation tiles are chosen with the seed of the index. A call that was stopped is continued by
    the same call.

    Args:
        index_dir: Folder of the index.
        output: Folder for the shards, which must not exist.
        n_val_tiles: Tiles for validation, as in `TileDataset`.
        n_val_patients: Patients held out for them, as in `TileDataset`.
        quality: JPEG quality, 1 to 100, without chroma subsampling.
        max_lost: Largest share of tiles that may be unreadable, 0 to 1.
        workers: Processes; None starts one per usable CPU core.
        scheduler: Address of a Dask scheduler, as tcp://host:8786, whose workers pack in their
            place.

    Raises:
        UserError: There is no index, the output exists or was begun with other settings, too many
            tiles are lost, or the disk is full.
    """
    import_litdata()
    (target,) = _paths_for(scheduler, output)
    settings = read_settings(index_dir)
    seed = settings["cohort"]["seed"]
    with _unfinished_pack(target) as folder:
        sources: dict[Split, SlideTiles] = {}
        for split in SPLITS:
            dataset = TileDataset(
                settings["cohort"]["root"],
                **settings["grid"],
                keep_duplicates=settings["keep_duplicates"],
                split=split,
                n_val_tiles=n_val_tiles,
                n_val_patients=n_val_patients,
                seed=seed,
                index_dir=str(index_dir),
                max_lost=max_lost,
            )
            dataset.setup()
            assert isinstance(dataset.tiles, SlideTiles)
            sources[split] = dataset.tiles
        root = Path(settings["cohort"]["root"]).expanduser()
        names = [path.relative_to(root).as_posix() for path in sources["train"].paths]
        description = {
            "index": settings,
            "seed": seed,
            "n_val_tiles": n_val_tiles,
            "n_val_patients": n_val_patients,
        }
        jobs = {"workers": workers, "scheduler": scheduler, "needs": [root]}
        _write_pack(folder, description, sources, names, quality, max_lost, jobs)


def pack_images(
    source: str | Path,
    output: str | Path,
    mpp: float | None = None,
    tile_size: int = 256,
    target_mpp: float = 0.5,
    patient_pattern: str | None = None,
    n_val_tiles: int = 2048,
    n_val_patients: int = 20,
    seed: int = 0,
    quality: int = 95,
    max_lost: float = 0.01,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Packs images that are no slides, so that a run trains on them as on tiles of slides.

    An image is divided into tiles on a grid in its middle, without regard to tissue. One that is a
    JPEG file of exactly one tile is kept as it is.

    Args:
        source: Folder of images, manifest, tar or parquet file, as in `find_images`.
        output: Folder for the shards, which must not exist.
        mpp: Microns per pixel of images for which a manifest says none.
        tile_size: Width and height of the tiles in pixels, at `target_mpp`.
        target_mpp: Microns per pixel of the tiles.
        patient_pattern: Regular expression whose first group, or the whole, is the patient in an
            image's name. None reads the patient from a manifest's column, or from a TCGA barcode.
        n_val_tiles: Tiles for validation, as in `TileDataset`.
        n_val_patients: Patients held out for them. If patients are unknown, a tenth of the tiles.
        seed: Seed of the choice of validation tiles and of the order in the shards.
        quality: JPEG quality, 1 to 100, without chroma subsampling.
        max_lost: Largest share of images, and of tiles, that may be unusable, 0 to 1.
        workers: Processes; None starts one per usable CPU core.
        scheduler: Address of a Dask scheduler, as tcp://host:8786, whose workers pack in their
            place.

    Raises:
        UserError: There are no images, their resolution or the patients of some are unknown, too
            many are unusable, the output exists or was begun with other settings, or the disk is
            full.
    """
    import_litdata()
    path, target = _paths_for(scheduler, source, output)
    images = find_images(path)
    if mpp is not None:
        images.table["mpp"] = images.table["mpp"].fillna(mpp)
    images.table["patient"] = _find_patients(images.table, patient_pattern)
    with _unfinished_pack(target) as folder:
        sizes = _measure_once(images, folder / ".sizes.parquet")
        sources: dict[Split, ImageTiles] = {}
        for split in SPLITS:
            tiles = ImageTiles(images, sizes, tile_size, target_mpp, max_lost)
            per_image = np.bincount(tiles.origins.of_tile, minlength=len(images))
            patients = images.table["patient"].to_numpy(str)
            tiles.keep(
                tiles_of_split(split, patients, per_image, n_val_tiles, n_val_patients, seed)
            )
            sources[split] = tiles
        description = {
            "images": Path(source).name,
            "grid": {"width": tile_size, "height": tile_size, "target_mpp": target_mpp},
            "seed": seed,
            "n_val_tiles": n_val_tiles,
            "n_val_patients": n_val_patients,
        }
        names = images.table["name"].tolist()
        jobs = {"workers": workers, "scheduler": scheduler, "needs": [path]}
        _write_pack(folder, description, sources, names, quality, max_lost, jobs)
        (folder / ".sizes.parquet").unlink()


def _paths_for(scheduler: str | None, *paths: str | Path) -> list[Path]:
    """Returns paths as they are given, or as the workers of a cluster find them.

    Raises:
        UserError: The cluster does not answer.
    """
    expanded = [Path(path).expanduser() for path in paths]
    if scheduler is None:
        return expanded
    check_scheduler(scheduler)  # before tiles are listed
    return [path.absolute() for path in expanded]  # workers run in folders of their own


def _write_pack(
    folder: Path,
    description: dict[str, Any],
    sources: Mapping[Split, PackableTiles],
    names: list[str],
    quality: int,
    max_lost: float,
    jobs: Mapping[str, Any],
) -> None:
    """Writes a pack, or what is missing of it.

    Args:
        folder: Where; what is there was written by an earlier call.
        description: The settings.
        sources: The tiles of each split.
        names: Names of the slides or images.
        quality: JPEG quality.
        max_lost: Largest share of tiles that may be unreadable.
        jobs: Where the shards are written, for `write_shards`.
    """
    description = description | {"quality": quality}
    description |= {f"{split}_tiles": len(source) for split, source in sources.items()}
    description["content"] = {split: source.fingerprint() for split, source in sources.items()}
    _check_same_pack(folder, description)
    _write_origins(folder / ORIGINS, sources["train"], names)
    for split, source in sources.items():
        lost = write_shards(source, folder / split, description["seed"], quality, **jobs)
        if lost > max_lost * len(source):
            raise UserError(
                f"{lost:,} of {len(source):,} {split} tiles cannot be read, more than the "
                f"{max_lost:.1%} that --max-lost allows. Raise it, or repair the files, remove "
                f"{folder} and pack again."
            )
        if lost:
            logger.warning(f"{lost} {split} tiles cannot be read. Substitutes are packed instead.")


@contextlib.contextmanager
def _unfinished_pack(output: Path) -> Iterator[Path]:
    """Yields the folder of a pack that is not whole, which is renamed if the block succeeds.

    If the block fails after shards were written, the folder stays: the next call goes on with it.
    """
    folder = output.with_name(f".{output.name}.part")
    _check_absent(output)
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with locked(lock):
        try:
            _check_absent(output)  # another process may have ended it
            with _explain_full_disk(output):
                yield folder
        except BaseException:
            if has_shards(folder):
                logger.info(f"What was packed is in {folder}: the same command continues it.")
            else:
                shutil.rmtree(folder)
            raise
        lock.unlink()
        folder.rename(output)


def _check_absent(output: Path) -> None:
    if output.exists():
        raise UserError(f"{output} exists. Remove it, or pack into another folder.")


@contextlib.contextmanager
def _explain_full_disk(output: Path) -> Iterator[None]:
    """Turns the errors of a full disk, here or in a worker, into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reasons = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
        reason = next((reason for reason in reasons if reason in str(error)), None)
        if reason is None or isinstance(error, UserError):
            raise
        raise UserError(
            f"Packing into {output} failed: {reason}. Free space there and in the folder for "
            f"temporary files, {tempfile.gettempdir()}, and run the same command: it goes on."
        ) from error


def _check_same_pack(folder: Path, description: dict[str, Any]) -> None:
    """Writes the settings of a pack, or compares them with those of a pack that was begun."""
    file = folder / "pack.json"
    if not file.exists():
        write_text(file, json.dumps(description, indent=1) + "\n")
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(description))
    different = [name for name in wanted if begun.get(name) != wanted[name]]
    if different:
        raise UserError(
            f"{folder} holds a part of a pack with another {', '.join(different)}. Pack as before "
            "to continue it, or remove it."
        )


def _write_origins(file: Path, source: PackableTiles, names: list[str]) -> None:
    origins = source.origins
    table = pa.table(
        {
            "name": pa.array(names, pa.string()),
            "patient": pa.array(origins.patients).dictionary_encode(),
            "centre": pa.array(origins.centres).dictionary_encode(),
        }
    ).replace_schema_metadata({"kind": origins.kind})
    with new_file(file) as partial:
        pq.write_table(table, partial)


def _measure_once(images: ImageSet, file: Path) -> np.ndarray:
    """Measures images, or reads what an earlier call measured, int32 (images, 2)."""
    names = images.table["name"]
    if file.exists():
        table = pq.read_table(file).to_pandas()
        if table["name"].equals(names):
            return table[["width", "height"]].to_numpy(np.int32)
    sizes = measure_images(images)
    table = pa.table({"name": pa.array(names), "width": sizes[:, 0], "height": sizes[:, 1]})
    with new_file(file) as partial:
        pq.write_table(table, partial)
    return sizes


def _find_patients(table: pd.DataFrame, pattern: str | None) -> pd.Series:
    """The patient of each image; "" for all if none is known.

    Raises:
        UserError: The pattern is wrong, or the patients of some images are unknown.
    """
    patients = table["patient"]
    if pattern is not None:
        patients = table["name"].map(_matcher(pattern))
    elif (patients == "").all():
        patients = table["name"].map(_patient_of_barcode)
    unknown = (patients == "").to_numpy()
    if unknown.any() and not unknown.all():
        raise UserError(
            f"The patients of {unknown.sum():,} of {len(table):,} images are unknown, e.g. of "
            f"{table['name'][int(unknown.argmax())]}. Name them in the column `patient` of a "
            "manifest, or give the regular expression of a patient in a name: --patient-pattern."
        )
    if unknown.any() and pattern is not None:
        raise UserError(
            f"--patient-pattern {pattern!r} finds no patient in any name, e.g. in "
            f"{table['name'][0]}. Its first group, or all of it, has to match the patient."
        )
    return patients


def _matcher(pattern: str) -> Any:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--patient-pattern {pattern!r} is no regular expression: {error}."
        ) from error

    def patient(name: str) -> str:
        match = compiled.search(name)
        return "" if match is None else clean_patient(match[1 if compiled.groups else 0] or "")

    return patient


def _patient_of_barcode(name: str) -> str:
    """The patient by the first TCGA barcode in a path, "" if there is none."""
    return next(filter(None, (describe_slide(part).patient for part in name.split("/"))), "")
