"""eva's writer of embeddings, which records the model and computes embeddings once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from eva.core.callbacks import ClassificationEmbeddingsWriter
from eva.core.models.modules.typings import INPUT_BATCH
from eva.core.utils.multiprocessing import Process
from loguru import logger
from torch import nn
from torchvision.transforms import v2
from typing_extensions import override

from g2l_plugin.encoders.load import own_normalization
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.evaluation.embedding_files import (
    MANIFEST,
    MODEL_FILE,
    TRAINING_PATIENTS,
    read_model,
)
from g2l_plugin.evaluation.speed import measure_speed
from g2l_plugin.evaluation.tiles import fingerprint, hash_names, write_manifest
from g2l_plugin.files import write_text
from g2l_plugin.slides.patients import is_patient_list
from g2l_plugin.upstream import image_transforms, registry_name

_TOLERANCE = 1e-3
"""Difference below which two means are the same: people round them differently."""


class EmbeddingsWriter(ClassificationEmbeddingsWriter):
    """Writes embeddings as eva does, together with the model's hash, size and speed.

    Existing embeddings are reused if weights, tiles and transforms are the same. If they differ,
    `eva predict_fit` and `eva fit` fail, so metrics never mix models. Embeddings of an interrupted
    run, and of images whose files have changed, are computed again. Labels and metadata are read
    from the dataset by every `eva predict_fit`; `eva fit` uses those of the last one.

    An error or a signal ends the process that writes: at exit, Python would wait for it forever.
    """

    def __init__(
        self,
        output_dir: str,
        backbone: nn.Module,
        dataloader_idx_map: dict[int, str] | None = None,
        metadata_keys: list[str] | None = None,
        overwrite: bool = False,
        save_every_n: int = 100,
    ) -> None:
        """Initializes the callback; arguments are those of eva's `ClassificationEmbeddingsWriter`.

        Args:
            output_dir: Folder for the embeddings.
            backbone: The model.
            dataloader_idx_map: Split of each predict dataset.
            metadata_keys: Keys of the tiles' metadata that go into the manifest.
            overwrite: Whether to compute embeddings again, even over those of another model.
            save_every_n: Number of tiles between writes.
        """
        super().__init__(
            output_dir, backbone, dataloader_idx_map, metadata_keys, overwrite, save_every_n
        )
        self._overwrite: bool = overwrite
        self._network = backbone
        self._identity: dict[str, Any] = {}
        self._images: torch.Tensor | None = None
        self._sigterm: Any = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage not in ("predict", "fit"):
            return
        predicting = stage == "predict"
        if predicting and threading.current_thread() is threading.main_thread():
            # Lightning only notes SIGTERM, and nothing reads the note while tiles are embedded.
            self._sigterm = signal.signal(signal.SIGTERM, _exit)
        datasets = _as_list(trainer.datamodule.datasets.predict)  # type: ignore[attr-defined]
        self._identity = _identify(self._network, datasets) | {"sha256": self._hash_model()}
        if predicting:  # only then are the datasets set up
            self._identity |= self._identify_tiles(datasets)
        if predicting:
            _check_normalization(self._network, datasets)
        if predicting and self._overwrite:
            return
        existing = read_model(self._output_dir)
        if predicting and existing is None and not (Path(self._output_dir) / MANIFEST).is_file():
            return
        if predicting and existing is not None and not existing["complete"]:
            self._overwrite = True  # otherwise eva refuses to overwrite a manifest
            return
        self._check_same(existing)
        if not predicting:
            return
        assert existing is not None
        if existing.get("images") != self._identity["images"]:
            logger.warning(
                f"The image files have changed since the embeddings in {self._output_dir} were "
                "computed. They are computed again."
            )
            self._overwrite = True
            return
        logger.info(
            f"Reusing the embeddings in {self._output_dir}: they are of this model and its images."
        )
        if trainer.is_global_zero:
            keys = {"classes", TRAINING_PATIENTS} & self._identity.keys()
            self._write_model(**existing | {key: self._identity[key] for key in keys})
            self._refresh_manifest(datasets)
        trainer.limit_predict_batches = 0

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
            self._sigterm = None

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._write_process is None or self._write_queue is None:
            return
        self._write_process.kill()
        self._write_process.join()
        self._write_queue.cancel_join_thread()  # nobody reads what is still in it

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._write_model(complete=False)

    @override
    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int],
        batch: INPUT_BATCH,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if self._images is None:
            self._images = INPUT_BATCH(*batch).data
        self._check_writer()
        super().write_on_batch_end(
            trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
        )

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        self._check_writer(ended=True)
        if not trainer.is_global_zero or self._images is None:
            return
        self._write_model(complete=True, **self._measure(self._images))
        self._images = None

    @override
    def _initialize_write_process(self) -> None:
        self._write_queue = multiprocessing.Queue()  # type: ignore[var-annotated]
        self._write_process = Process(
            target=_write,
            args=(
                self._process_write_queue,
                self._write_queue,
                self._output_dir,
                self._metadata_keys,
                self._save_every_n,
                self._overwrite,
            ),
            daemon=True,  # at exit it is ended, not waited for
        )

    @override
    def _get_embeddings(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            return super()._get_embeddings(tensor)
        except (AssertionError, RuntimeError, ValueError) as error:  # timm asserts the size
            raise UserError(
                f"{_name(self._network)} cannot embed a batch of {len(tensor)} tiles of "
                f"{' x '.join(map(str, tensor.shape[1:]))} ({in_one_line(error)}). Check "
                "RESIZE_DIM and PREDICT_BATCH_SIZE."
            ) from error

    def _hash_model(self) -> str:
        """Hash of what the embeddings are of."""
        # Without eva's wrapper, which adds to the tensors' names.
        return hash_tensors(getattr(self._network, "model", self._network))

    def _measure(self, images: torch.Tensor) -> dict[str, Any]:
        """Width, size and speed of the model, on a batch of images (B, 3, H, W)."""
        with torch.inference_mode():
            width = self._network(images[:1]).shape[-1]
        speed = dataclasses.asdict(measure_speed(self._network, images))
        return {"embedding_dim": width, "input_size": images.shape[-1], **speed}

    def _refresh_manifest(self, datasets: list[Any]) -> None:
        """Writes the datasets' present labels into the manifest of embeddings that are reused."""
        splits = [self._split(number) for number in range(len(datasets))]
        write_manifest(Path(self._output_dir), datasets, splits, self._metadata_keys)

    def _check_writer(self, ended: bool = False) -> None:
        """Raises a UserError if the writing process failed: its embeddings are incomplete."""
        process = self._write_process
        if process is None or (process.is_alive() and not ended):
            return
        failed = process.exception
        if not failed and ended and process.exitcode == 0:
            return
        reason = in_one_line(failed[0]) if failed else f"its process ended: {process.exitcode}"
        raise UserError(
            f"The embeddings cannot be written to {self._output_dir} ({reason}). Check the disk "
            "and the memory, and run the same command again."
        )

    def _identify_tiles(self, datasets: Sequence[Any]) -> dict[str, Any]:
        return {
            "classes": getattr(datasets[0], "classes", None),
            "tiles": [hash_names(dataset) for dataset in datasets],
            "images": {
                self._split(number): fingerprint(dataset) for number, dataset in enumerate(datasets)
            },
        }

    def _split(self, number: int) -> str:
        return self._dataloader_idx_map.get(number, str(number))

    def _write_model(self, **facts: Any) -> None:
        text = json.dumps(self._identity | facts, indent=2) + "\n"
        write_text(Path(self._output_dir) / MODEL_FILE, text)

    def _check_same(self, existing: dict[str, Any] | None) -> None:
        """Raises a UserError if existing embeddings are not of this model and data."""
        if existing is None or not existing["complete"]:
            content = "embeddings that are incomplete or of unknown origin"
        elif existing["sha256"] != self._identity["sha256"]:
            content = (
                f"embeddings of {existing['name']} (sha256 {existing['sha256'][:12]}), not of "
                f"{self._identity['name']} (sha256 {self._identity['sha256'][:12]})"
            )
        elif existing["transforms"] != self._identity["transforms"]:
            content = "this model's embeddings with other transforms (RESIZE_DIM, NORMALIZE_MEAN)"
        elif existing["tiles"] != self._identity.get("tiles", existing["tiles"]):
            content = "this model's embeddings of other tiles"
        else:
            return
        raise UserError(
            f"{self._output_dir} holds {content}. Set another MODEL_LABEL or EMBEDDINGS_ROOT, or "
            "compute them again: OVERWRITE=true eva predict_fit ..."
        )


def _exit(number: int, frame: FrameType | None) -> None:
    # Not through the logger: the signal may have interrupted it, and it would wait for itself.
    os.write(2, b"SIGTERM: the embeddings are incomplete; the same command computes them again.\n")
    sys.exit(128 + number)


def _write(write: Callable[..., None], *args: Any) -> None:
    """Writes embeddings in a process of its own, until its parent ends, however that ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole group; the parent acts on it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    write(*args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _identify(network: nn.Module, datasets: list[Any]) -> dict[str, Any]:
    """Describes the model and its input."""
    patients = _training_patients(network)
    return ({} if patients is None else {TRAINING_PATIENTS: patients}) | {
        "name": _name(network),
        "transforms": [repr(image_transforms(dataset)) for dataset in datasets],
    }


def _name(network: nn.Module) -> str:
    """Names a backbone by its source, else by its name in eva's registry, else by its class."""
    source = getattr(getattr(network, "model", network), "source", None)
    return source or registry_name(network) or type(network).__name__


def _training_patients(network: nn.Module) -> list[str] | None:
    """The patients that a student was distilled on, hashed; None if it does not list them."""
    patients = getattr(getattr(network, "model", network), "training_patients", None)
    if patients is None or is_patient_list(patients):
        return patients
    logger.warning(
        f"patients.txt of {_name(network)} is not a list that `g2l publish` wrote, so it is not "
        "known which patients the model was trained on."
    )
    return None


def _check_normalization(network: nn.Module, datasets: list[Any]) -> None:
    """Warns if the tiles are normalised differently from those the network was trained on."""
    inner = getattr(network, "model", network)
    source = getattr(inner, "source", None) or f"eva:{registry_name(network)}"
    if source.startswith("eva:universal/"):  # their normalisation is for natural images
        return
    own = own_normalization(inner, source)
    for dataset in datasets:
        for step in getattr(image_transforms(dataset), "transforms", []):
            if not isinstance(step, v2.Normalize):
                continue
            for variable, expected, given in zip(
                ("NORMALIZE_MEAN", "NORMALIZE_STD"), own, (step.mean, step.std), strict=True
            ):
                if expected and not _close(expected, given):
                    logger.warning(
                        f"{variable} is {list(given)}, but {_name(network)} was trained with "
                        f"{list(expected)}. Set {variable} to these values for better embeddings."
                    )
            return


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) < _TOLERANCE for x, y in zip(a, b, strict=True))


def _as_list(datasets: Any) -> list[Any]:
    return datasets if isinstance(datasets, list) else [datasets]
