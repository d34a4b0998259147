"""Tiles read from the shards that `pack_tiles` wrote, on a disk or in an object store."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from loguru import logger
from torchvision.io import ImageReadMode, decode_jpeg

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.tile_source import Origins

_MAX_WAIT = 60.0
"""Seconds after which an object store that has not answered is taken to be down."""

_VARIABLES = {
    "width": "TILE_SIZE",
    "height": "TILE_SIZE",
    "target_mpp": "TARGET_MPP",
    "overwrite_mpp": "OVERWRITE_MPP",
    "min_tissue": "MIN_TISSUE",
    "min_sharpness": "MIN_SHARPNESS",
    "n_slides": "N_SLIDES",
    "seed": "COHORT_SEED",
    "n_val_tiles": "N_VAL_TILES",
    "n_val_patients": "N_VAL_PATIENTS",
}
"""The variables of the configs that set what a pack records."""

TILES = "tiles.parquet"
"""The table of a split's tiles in the order of their numbers: `origin`, `x`, `y`, `substitute`."""

ORIGINS = "origins.parquet"
"""The table of a pack's slides or images: `name`, `patient`, `centre`."""

T = TypeVar("T")


class PackedTiles:
    """The tiles of one split of a pack (a `TileSource`).

    Attributes:
        root: Folder or address of the shards.
        group_sizes: Tiles of each shard, int (shards,).
        origins: The slides or images that were packed, those of the other split too.
    """

    def __init__(self, packed_root: str, split: str) -> None:
        """Opens the shards.

        Args:
            packed_root: Folder that `pack_tiles` wrote, or the address of its copy in an object
                store that LitData can read (`s3://bucket/tiles`).
            split: "train" or "val".

        Raises:
            UserError: There are no shards, the store does not answer, a shard is missing or cut, or
                they do not hold encoded bytes.
        """
        litdata = import_litdata()
        self.root = f"{packed_root.rstrip('/')}/{split}"

        def open_shards() -> tuple[Any, str]:
            # No batch decoding: tiles of a shard are read one by one, in random order.
            shards = litdata.StreamingDataset(self.root, batch_decode=0)
            return shards, (Path(shards.input_dir.path) / "index.json").read_text()

        try:
            self._shards, text = _wait_for(self.root, open_shards)
            index = json.loads(text)
        except UserError:
            raise
        except Exception as error:  # every store has its own errors
            raise UserError(
                f"There are no packed tiles in {self.root} ({in_one_line(error)}). Write them: g2l "
                f"pack SOURCE {packed_root}"
            ) from error
        # LitData decodes whatever format the index names, and pickle is one of them.
        if index["config"]["data_format"] != ["bytes"]:
            raise UserError(
                f"{self.root} holds {index['config']['data_format']}, expected ['bytes']. Write "
                "the tiles again with g2l pack."
            )
        if self._shards.input_dir.url is None:
            _check_shards(Path(self._shards.input_dir.path), index["chunks"])
        self._names = [chunk["filename"] for chunk in index["chunks"]]
        tiles = _read_parquet(packed_root, f"{split}/{TILES}")
        shards = (tiles.schema.metadata or {}).get(b"shards", text.encode())
        self._fingerprint = hashlib.sha256(shards).hexdigest()
        self._xy = np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], axis=1)  # (tiles, 2)
        self._substitute = tiles["substitute"].to_numpy()
        origins = _read_parquet(packed_root, ORIGINS)
        self._origin_names = origins["name"]
        self.origins = Origins(
            (origins.schema.metadata or {})[b"kind"].decode(),
            np.array(origins["patient"].to_pylist(), str),
            _are_known(origins),
            np.array(origins["centre"].to_pylist(), str),
            tiles["origin"].to_numpy(),
        )
        self.group_sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]])

    def __len__(self) -> int:
        """Tiles of all shards."""
        return int(self.group_sizes.sum())

    def read(self, number: int) -> torch.Tensor:
        """Reads a tile, uint8 RGB (3, height, width).

        Raises:
            UserError: Its shard cannot be read.
        """
        try:
            data = torch.frombuffer(bytearray(self._shards[number]), dtype=torch.uint8)
            return decode_jpeg(data, mode=ImageReadMode.RGB)
        except Exception as error:  # every store has its own errors
            shard = np.searchsorted(np.cumsum(self.group_sizes), number, side="right")
            raise UserError(
                f"Shard {self._names[shard]} of {self.root} cannot be read: {in_one_line(error)}. "
                "Copy it again, and run the same command: it continues from the last checkpoint."
            ) from error

    def read_into(self, number: int, out: np.ndarray) -> None:
        """Reads a tile as `read` does, into memory: uint8 RGB (3, height, width)."""
        out[...] = self.read(number)

    def substitutes(self, numbers: np.ndarray) -> np.ndarray:
        """Says which of these tiles could not be read when they were packed, bool (tiles,)."""
        return self._substitute[numbers]

    def lost(self) -> np.ndarray:
        """Numbers of the tiles that could not be read when they were packed, int64."""
        return np.flatnonzero(self._substitute)

    def locate(self, numbers: np.ndarray) -> pd.DataFrame:
        """Lists number, slide or image (its name) and upper left corner of tiles."""
        names = self._origin_names.take(self.origins.of_tile[numbers]).to_pylist()
        x, y = self._xy[numbers].T
        return pd.DataFrame({"tile": numbers, "slide": names, "x": x, "y": y})

    def describe(self) -> str:
        """Numbers of tiles and shards, for the log."""
        return f"{len(self):,} tiles of {len(self.group_sizes):,} shards in {self.root}"

    def fingerprint(self) -> str:
        """SHA-256 of the shards' own; the place of the shards does not change it."""
        return self._fingerprint


def check_settings(packed_root: str, wanted: Mapping[str, Any]) -> None:
    """Raises an error if tiles were packed with other settings than those that a run names.

    Otherwise the run would record settings that its tiles do not have. The folder and the list of
    the slides are not compared: they are places on the machine that packed.

    Args:
        packed_root: Folder or address, as in `PackedTiles`.
        wanted: The settings of the run, as `pack_settings` names them.

    Raises:
        UserError: Settings differ, or the pack does not record any.
    """
    packed = pack_settings(_read_description(packed_root))
    different = [name for name in wanted if name in packed and packed[name] != wanted[name]]
    if different:
        raise UserError(
            f"The tiles in {packed_root} were packed with {_assign(packed, different)}, but this "
            f"run has {_assign(wanted, different)}. Set it as packed, or pack other tiles: g2l "
            "index, g2l pack."
        )


def pack_settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a pack's description, `pack.json`, under the names of `TileDataset`."""
    named = ("seed", "n_val_tiles", "n_val_patients")
    settings = {name: description[name] for name in named if name in description}
    if (index := description.get("index")) is None:  # of images
        return description["grid"] | settings
    cohort = {name: index["cohort"][name] for name in ("n_slides", "one_per_patient", "seed")}
    return {**index["grid"], "keep_duplicates": index["keep_duplicates"], **cohort, **settings}


def _read_description(packed_root: str) -> dict[str, Any]:
    """Reads `pack.json` from a folder or an object store."""
    return _read_file(packed_root, "pack.json", json.loads)


def _read_parquet(packed_root: str, name: str) -> pa.Table:
    return _read_file(packed_root, name, lambda data: pq.read_table(pa.BufferReader(data)))


def _read_file(packed_root: str, name: str, parse: Callable[[bytes], T]) -> T:
    """Reads a file of a pack from a folder or an object store."""
    import_litdata()
    from litdata.streaming.downloader import get_downloader

    address = f"{packed_root.rstrip('/')}/{name}"

    def read() -> bytes:
        if not _is_remote(address):
            return Path(address).read_bytes()
        # Not `download_file`: it starts threads of a library that its forked workers cannot use.
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as cache:
            get_downloader(packed_root, cache, []).download_fileobj(address, buffer)
        return buffer.getvalue()

    try:
        return parse(_wait_for(packed_root, read))
    except UserError:
        raise
    except Exception as error:  # every store has its own errors
        raise UserError(
            f"There are no packed tiles in {packed_root}: its {name} cannot be read "
            f"({in_one_line(error)}). Write them: g2l pack SOURCE {packed_root}"
        ) from error


def _is_remote(address: str) -> bool:
    return "://" in address


def _assign(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    values = {_VARIABLES.get(name, name): settings[name] for name in names}
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def _are_known(origins: pa.Table) -> np.ndarray:
    """Whether patients are known, bool (origins,): others have their slide's name, or none."""
    patients = origins["patient"].cast(pa.string())
    named = pc.and_(pc.not_equal(patients, ""), pc.not_equal(patients, origins["name"]))
    return named.to_numpy()


def _check_shards(folder: Path, chunks: Sequence[Mapping[str, Any]]) -> None:
    """Raises an error if a shard is missing or shorter than it was written."""
    for chunk in chunks:
        path = folder / chunk["filename"]
        size = path.stat().st_size if path.is_file() else 0
        if size < chunk["chunk_bytes"]:
            raise UserError(
                f"Shard {path} has {size:,} of {chunk['chunk_bytes']:,} bytes. Copy it again, or "
                "pack the tiles again."
            )


def _wait_for(address: str, function: Callable[[], T]) -> T:
    """Calls a function that reads from an address, and gives up if there is no answer.

    Raises:
        UserError: There is none within `_MAX_WAIT`.
    """
    if not _is_remote(address):
        return function()
    logger.info(f"Waiting for {address}, at most {_MAX_WAIT:g} s.")
    answer: Future[T] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    # A daemon, because Python would wait for any other thread at its end.
    threading.Thread(target=call, daemon=True).start()
    try:
        return answer.result(_MAX_WAIT)
    except concurrent.futures.TimeoutError as error:
        raise UserError(
            f"{address} has not answered for {_MAX_WAIT:g} s. Check the network, the address and "
            "the endpoint of the object store."
        ) from error


def import_litdata() -> Any:
    """Imports LitData, an optional extra.

    Raises:
        UserError: It is not installed.
    """
    try:
        import litdata
    except ImportError as error:
        raise UserError(
            "Packed tiles need LitData. Install it: pip install 'g2l-plugin[packed]'"
        ) from error
    return litdata
