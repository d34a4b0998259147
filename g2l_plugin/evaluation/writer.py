"""eva's writer of embeddings, which knows whose they are and computes them once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from eva.core.callbacks import ClassificationEmbeddingsWriter
from eva.core.models.modules.typings import INPUT_BATCH
from loguru import logger
from torch import nn
from torchvision.transforms import v2
from typing_extensions import override

from g2l_plugin.encoders.load import own_normalization
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embeddings import MANIFEST
from g2l_plugin.evaluation.speed import measure_speed
from g2l_plugin.files import write_text

MODEL_FILE = "model.json"
"""Name of the file beside the embeddings that says whose they are."""

_TOLERANCE = 1e-3
"""Difference between two means that are the same, rounded as people round them."""


class EmbeddingsWriter(ClassificationEmbeddingsWriter):
    """Writes embeddings as eva does, and beside them the model's hash, size and speed.

    Embeddings that are there are taken, and not computed again, where they are of the same weights,
    the same tiles and the same transforms. Of other ones it is an error, in `eva predict_fit` and
    in `eva fit`: measures never mix models. What an interrupted run left is computed anew.
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
        """Initializes the callback; the arguments are eva's `ClassificationEmbeddingsWriter`'s.

        Args:
            output_dir: Folder for the embeddings.
            backbone: The model.
            dataloader_idx_map: Split of each predict dataset.
            metadata_keys: What of a tile's metadata goes into the manifest.
            overwrite: Whether to compute embeddings anew, whosever are there.
            save_every_n: Tiles between writes.
        """
        super().__init__(
            output_dir, backbone, dataloader_idx_map, metadata_keys, overwrite, save_every_n
        )
        self._overwrite: bool = overwrite
        self._network = backbone
        self._identity: dict[str, Any] = {}
        self._images: torch.Tensor | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage not in ("predict", "fit"):
            return
        predicting = stage == "predict"
        datasets = _as_list(trainer.datamodule.datasets.predict)  # type: ignore[attr-defined]
        self._identity = _identify(self._network, datasets, with_tiles=predicting)
        if predicting:
            _check_normalization(self._network, datasets)
        if predicting and self._overwrite:
            return
        there = read_model(self._output_dir)
        if predicting and there is None and not (Path(self._output_dir) / MANIFEST).is_file():
            return
        if predicting and there is not None and not there["complete"]:
            self._overwrite = True  # eva asks before it writes over a manifest
            return
        self._refuse_others(there)
        if predicting:
            logger.info(f"Takes the embeddings in {self._output_dir}: they are of this model.")
            trainer.limit_predict_batches = 0

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
        super().write_on_batch_end(
            trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
        )

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        if not trainer.is_global_zero or self._images is None:
            return
        with torch.inference_mode():
            width = self._network(self._images[:1]).shape[-1]
        self._write_model(
            complete=True,
            embedding_dim=width,
            input_size=self._images.shape[-1],
            **dataclasses.asdict(measure_speed(self._network, self._images)),
        )
        self._images = None

    def _write_model(self, **facts: Any) -> None:
        text = json.dumps(self._identity | facts, indent=2) + "\n"
        write_text(Path(self._output_dir) / MODEL_FILE, text)

    def _refuse_others(self, there: dict[str, Any] | None) -> None:
        """Raises where the embeddings that are there are not those of this model and data."""
        if there is None or not there["complete"]:
            origin = "embeddings of unknown origin, or not all of them"
        elif there["sha256"] != self._identity["sha256"]:
            origin = (
                f"embeddings of {there['name']} (sha256 {there['sha256'][:12]}), and not of "
                f"{self._identity['name']} (sha256 {self._identity['sha256'][:12]})"
            )
        elif there["transforms"] != self._identity["transforms"]:
            origin = "this model's embeddings under other transforms (RESIZE_DIM, NORMALIZE_MEAN)"
        elif there["tiles"] != self._identity.get("tiles", there["tiles"]):
            origin = "this model's embeddings of other tiles"
        else:
            return
        raise UserError(
            f"{self._output_dir} holds {origin}. Give the model a MODEL_LABEL of its own (or "
            "another EMBEDDINGS_ROOT), or compute them anew: OVERWRITE=true eva predict_fit ..."
        )


def read_model(folder: str | Path) -> dict[str, Any] | None:
    """Reads whose embeddings a folder holds: `name`, `sha256`, `complete`, and `Speed`'s fields.

    Args:
        folder: The folder of the embeddings.

    Returns:
        What the writer noted; None where it did not write them.
    """
    path = Path(folder) / MODEL_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _identify(network: nn.Module, datasets: list[Any], with_tiles: bool) -> dict[str, Any]:
    """What makes embeddings these and no others."""
    identity: dict[str, Any] = {
        "name": _name(network),
        # Without eva's wrapper, which has a part in the tensors' names.
        "sha256": hash_tensors(getattr(network, "model", network)),
        "transforms": [repr(_transforms(dataset)) for dataset in datasets],
    }
    if with_tiles:  # they are set up then
        identity["tiles"] = [_hash_names(dataset) for dataset in datasets]
    return identity


def _hash_names(dataset: Any) -> str:
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(f"{dataset.filename(index)}\n".encode())
    return f"{len(dataset)} {digest.hexdigest()}"


def _name(network: nn.Module) -> str:
    """What a user calls a backbone: its source, else its name in eva's registry, else its class."""
    source = getattr(getattr(network, "model", network), "source", None)
    return source or getattr(network, "_model_name", None) or type(network).__name__


def _check_normalization(network: nn.Module, datasets: list[Any]) -> None:
    """Warns where the tiles are not normalised as the network was trained with."""
    inner = getattr(network, "model", network)
    source = getattr(inner, "source", None) or f"eva:{getattr(network, '_model_name', '')}"
    if source.startswith("eva:universal/"):  # theirs are for natural images
        return
    own = own_normalization(inner, source)
    for dataset in datasets:
        for step in getattr(_transforms(dataset), "transforms", []):
            if not isinstance(step, v2.Normalize):
                continue
            for variable, expected, given in zip(
                ("NORMALIZE_MEAN", "NORMALIZE_STD"), own, (step.mean, step.std), strict=True
            ):
                if expected and not _close(expected, given):
                    logger.warning(
                        f"{variable} is {list(given)}, and {_name(network)} was trained with "
                        f"{list(expected)}: its embeddings are worse than they need be."
                    )
            return


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) < _TOLERANCE for x, y in zip(a, b, strict=True))


def _transforms(dataset: Any) -> Any:
    """The transforms of one of eva's datasets, under the names that they have there."""
    return getattr(dataset, "_transforms", None) or getattr(dataset, "_image_transforms", None)


def _as_list(datasets: Any) -> list[Any]:
    return datasets if isinstance(datasets, list) else [datasets]
