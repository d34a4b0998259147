"""Maps of patch embeddings for eva's segmentation tasks, with a record of their model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eva.core.callbacks import SegmentationEmbeddingsWriter as EvaWriter
from torch import nn
from typing_extensions import override

from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.evaluation.embedding_files import read_manifest
from g2l_plugin.evaluation.writer import EmbeddingsWriter
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.slides.patients import find_barcode
from g2l_plugin.upstream import registry_out_indices

MAPS = "maps_sha256"
"""Key of the hash of a backbone that gives maps, in the facts of a model."""


class SegmentationEmbeddingsWriter(EmbeddingsWriter):
    """Writes maps of patch embeddings as eva does, with the rules of `EmbeddingsWriter`.

    Maps are reused if weights, `out_indices`, images and transforms are the same; the masks are
    then those of before. Size and speed are not measured: timm leaves out the layers that the maps
    do not need.
    """

    @staticmethod
    @override
    def _process_write_queue(*args: Any, **kwargs: Any) -> None:
        EvaWriter._process_write_queue(*args, **kwargs)

    @override
    def _get_embeddings(self, tensor: torch.Tensor) -> Any:
        maps: Any = super()._get_embeddings(tensor)
        if not isinstance(maps, list):
            return maps
        return [[own[index] for own in maps] for index in range(len(tensor))]

    @override
    def _hash_model(self) -> str:
        return hash_maps(self._network)

    @override
    def _write_model(self, **facts: Any) -> None:
        super()._write_model(**facts | {MAPS: self._identity["sha256"]})

    @override
    def _measure(self, images: torch.Tensor) -> dict[str, Any]:
        return {}

    @override
    def _refresh_manifest(self, datasets: list[Any]) -> None:
        """Does nothing: the targets are files, written with the maps."""


def hash_maps(network: nn.Module) -> str:
    """SHA-256 of a backbone of eva's registry that gives maps: its weights, and which maps."""
    weights = hash_tensors(getattr(network, "model", network))
    return hashlib.sha256(f"{weights} {registry_out_indices(network)}".encode()).hexdigest()


def read_patches(folder: str | Path, split: str) -> Embeddings:
    """Lists the patches of a split, without their maps.

    Args:
        folder: Folder of the maps.
        split: The split.

    Returns:
        Embeddings (N, 0). They have the group `patient` if each name has a TCGA barcode.
    """
    table = read_manifest(Path(folder))
    names = table.loc[table["split"] == split, "origin"].astype(str).to_numpy()
    patients = np.array([find_barcode(name) for name in names])
    groups = {"patient": patients} if len(names) and all(patients) else {}
    zeros = np.zeros(len(names), np.int64)
    return Embeddings(np.zeros((len(names), 0), np.float32), zeros, names, groups, split)
