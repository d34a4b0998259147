"""The teachers of a run: frozen encoders, and where their embeddings are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from g2l_plugin.distillation.teacher_cache import TeacherCache
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.transfer import to_device


class Teachers(nn.Module):
    """Frozen encoders that are in no state dict, and stay in evaluation mode."""

    def __init__(self, sources: list[EncoderSource]) -> None:
        """Loads the teachers."""
        super().__init__()
        self._sources = sources
        self._encoders = nn.ModuleList(
            source.load().eval().requires_grad_(False) for source in sources
        )
        self._caches: list[TeacherCache] = []

    @property
    def encoders(self) -> list[Encoder]:
        """The encoders, in the order of their sources."""
        return list(self._encoders)  # type: ignore[arg-type]

    @override
    def train(self, mode: bool = True) -> Teachers:
        return super().train(False)

    @override
    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination

    def forward(self, images: torch.Tensor, at_once: int | None = None) -> list[torch.Tensor]:
        """Embeds images with each teacher.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).
            at_once: Images that go through an encoder at once; None takes all.

        Returns:
            Embeddings of each teacher, (B, teacher_dim), which autograd may keep.
        """
        return [_embed(encoder, images, at_once) for encoder in self.encoders]

    def open_caches(
        self, root: Path, view: dict[str, Any], precision: str, fingerprint: str, n_tiles: int
    ) -> None:
        """Keeps embeddings from here on, and takes those that are there.

        Args:
            root: Folder of all caches.
            view: Settings of the views.
            precision: Whatever else the embeddings are rounded by.
            fingerprint: Hash of the tiles.
            n_tiles: How many there are.

        Raises:
            UserError: A teacher has random weights, or none that have a hash.
        """
        self._caches = []
        for source, encoder in zip(self._sources, self.encoders, strict=True):
            if encoder.provenance.sha256 is None or not encoder.provenance.pretrained:
                raise UserError(
                    f"`teacher_cache` keeps what a teacher's weights give, and {source.source} has "
                    "random weights, or none with a hash. Set it (TEACHER_CACHE) to null."
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
                "tiles": fingerprint,
            }
            self._caches.append(TeacherCache(root, key, n_tiles))

    def embed_tiles(
        self,
        images: torch.Tensor,
        tiles: np.ndarray | None,
        view: int,
        at_once: int | None = None,
        stands_in: np.ndarray | None = None,
    ) -> list[torch.Tensor]:
        """Embeds views of tiles; with caches, only those that they do not hold.

        Args:
            images: The views in [0, 1], (B, 3, H, W).
            tiles: Numbers of the tiles, on the host, int64 (B,); None where they have none.
            view: Number of the view.
            at_once: Images that go through an encoder at once; None takes all.
            stands_in: Which images are not of their tile but of one that stands in for it, bool
                (B,): no cache holds those. None: none.

        Returns:
            Embeddings of each teacher, (B, teacher_dim), which autograd may keep.

        Raises:
            UserError: There are caches, and the tiles have no numbers.
        """
        if not self._caches:
            return self(images, at_once)
        if tiles is None:
            raise UserError(
                "`teacher_cache` needs tiles that have numbers. Use g2l_plugin.TileDataModule, or "
                "set it (TEACHER_CACHE) to null."
            )
        of_tile = np.ones(len(tiles), bool) if stands_in is None else ~stands_in
        return [
            _embed_missing(encoder, cache, images, tiles, of_tile, view, at_once)
            for encoder, cache in zip(self.encoders, self._caches, strict=True)
        ]

    def refresh_caches(self) -> None:
        """Takes note of embeddings that other processes have written."""
        for cache in self._caches:
            cache.refresh()

    def flush_caches(self) -> None:
        """Writes the embeddings that are not written yet."""
        for cache in self._caches:
            cache.flush()


def _embed(encoder: Encoder, images: torch.Tensor, at_once: int | None) -> torch.Tensor:
    # Weights of half precision need no autocast: on CUDA it would bring layer norms to float32,
    # whose results the next layer rounds all the same. Embeddings are of half precision then too.
    half = next(encoder.parameters()).dtype != torch.float32
    mixed = torch.is_autocast_enabled(images.device.type) and not half
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=mixed):
        embeddings = torch.cat([encoder(part) for part in images.split(at_once or len(images))])
    return embeddings.clone()  # one that autograd may keep


def _embed_missing(
    encoder: Encoder,
    cache: TeacherCache,
    images: torch.Tensor,
    tiles: np.ndarray,
    of_tile: np.ndarray,
    view: int,
    at_once: int | None,
) -> torch.Tensor:
    held = np.zeros(len(tiles), bool)
    held[of_tile], rows = cache.get(tiles[of_tile], view)
    missing = np.flatnonzero(~held)
    if rows is not None and not missing.size:
        return to_device(rows, images.device)
    computed = _embed(encoder, _select(images, missing), at_once)
    own = np.flatnonzero(of_tile[missing])
    cache.put(tiles[missing[own]], view, _select(computed, own))
    if rows is None:
        return computed
    embeddings = computed.new_empty((len(tiles), computed.shape[1]))
    read = to_device(rows, images.device).to(computed.dtype)
    for places, part in ((np.flatnonzero(held), read), (missing, computed)):
        embeddings.index_copy_(0, to_device(places, images.device), part)
    return embeddings


def _select(rows: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Some rows of a tensor on any device, which is not waited for."""
    return rows.index_select(0, to_device(places, rows.device))
