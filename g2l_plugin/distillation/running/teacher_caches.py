"""The teachers' embeddings of a run: read from caches as far as these hold them, else computed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g2l_plugin.distillation.running.teacher_cache import TeacherCache
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.transfer import to_device


class TeacherCaches:
    """One cache per teacher."""

    def __init__(
        self,
        root: Path,
        sources: Sequence[EncoderSource],
        encoders: Sequence[Encoder],
        view: dict[str, Any],
        precision: str,
        dataset: TileDataset | None,
    ) -> None:
        """Opens the caches.

        Args:
            root: Folder of all caches.
            sources: The sources of the teachers.
            encoders: The teachers.
            view: Settings of the views.
            precision: Precision, device and whatever else rounds the embeddings.
            dataset: The tiles.

        Raises:
            UserError: The tiles have no numbers, or a teacher has random weights or no hash.
        """
        if dataset is None:
            raise UserError(
                "`teacher_cache` needs numbered tiles. Train on a g2l_plugin.TileDataset in eva's "
                "data module, or set `teacher_cache` (TEACHER_CACHE) to null."
            )
        self._encoders = encoders
        self._caches: list[TeacherCache] = []
        for source, encoder in zip(sources, encoders, strict=True):
            if encoder.provenance.sha256 is None or not encoder.provenance.pretrained:
                raise UserError(
                    f"`teacher_cache` keeps the embeddings of known weights, but {source.source} "
                    "has random weights, or none with a hash. Set it (TEACHER_CACHE) to null."
                )
            key = {
                "sha256": encoder.provenance.sha256,
                "model_kwargs": source.model_kwargs,
                "output": encoder.output,
                "dtype": source.dtype,
                "precision": precision,
                "mean": encoder.mean.flatten().tolist(),
                "std": encoder.std.flatten().tolist(),
                "view": view,
                "tiles": dataset.fingerprint(),
                "slides": _describe_slides(dataset),
            }
            self._caches.append(TeacherCache(root, key, len(dataset)))

    def embed(
        self,
        views: torch.Tensor,
        batch: TileBatch,
        view_number: int,
        embed: Callable[[Encoder, torch.Tensor], torch.Tensor],
    ) -> list[torch.Tensor]:
        """Embeds the views of a batch; only those that no cache holds are computed.

        Args:
            views: Views in [0, 1], (B, 3, H, W).
            batch: Their tiles. Views of substitute tiles are never cached.
            view_number: Number of the view.
            embed: Computes the embeddings (N, D_t) of some views (N, 3, H, W) by a teacher.

        Returns:
            Embeddings of each teacher, (B, D_t), which autograd may keep.

        Raises:
            UserError: The tiles have no numbers.
        """
        if batch.numbers is None:
            raise UserError(
                "`teacher_cache` needs numbered tiles. Use g2l_plugin.TileDataModule, or set "
                "`teacher_cache` (TEACHER_CACHE) to null."
            )
        cacheable = np.ones(len(views), bool)  # (B,)
        if batch.substitutes is not None:
            cacheable = ~batch.substitutes
        return [
            _embed_missing(encoder, cache, views, batch.numbers, cacheable, view_number, embed)
            for encoder, cache in zip(self._encoders, self._caches, strict=True)
        ]

    def refresh(self) -> None:
        """Finds embeddings that other processes have written."""
        for cache in self._caches:
            cache.refresh()

    def flush(self) -> None:
        """Writes the embeddings that are not written yet."""
        for cache in self._caches:
            cache.flush()


def _describe_slides(dataset: TileDataset) -> str:
    """Hash of the slides' sizes and times: other images may have the names of former ones."""
    digest = hashlib.sha256()
    for path in getattr(dataset.tiles, "paths", ()):  # packed tiles have none
        with contextlib.suppress(OSError):  # its tiles are substitutes, which are not cached
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _embed_missing(
    encoder: Encoder,
    cache: TeacherCache,
    views: torch.Tensor,
    numbers: np.ndarray,
    cacheable: np.ndarray,
    view_number: int,
    embed: Callable[[Encoder, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    held = np.zeros(len(numbers), bool)  # (B,)
    held[cacheable], rows = cache.get(numbers[cacheable], view_number)  # rows: (held, D_t)
    missing = np.flatnonzero(~held)
    if rows is not None and not missing.size:
        return to_device(rows, views.device)
    computed = embed(encoder, _select(views, missing))  # (missing, D_t)
    new = np.flatnonzero(cacheable[missing])
    cache.put(numbers[missing[new]], view_number, _select(computed, new))
    if rows is None:
        return computed
    embeddings = computed.new_empty((len(numbers), computed.shape[1]))  # (B, D_t)
    read = to_device(rows, views.device).to(computed.dtype)
    for places, part in ((np.flatnonzero(held), read), (missing, computed)):
        embeddings.index_copy_(0, to_device(places, views.device), part)
    return embeddings


def _select(rows: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Some rows of a tensor; the host does not wait for the device."""
    return rows.index_select(0, to_device(places, rows.device))
