"""Embeds a labelled tile dataset with an encoder in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from g2l_plugin.encoders.encoder import Encoder, in_eval_mode
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.slides.views import center_view


@torch.inference_mode()
def embed_tiles(
    encoder: Encoder,
    dataset: Any,
    view_size: int,
    split: str,
    batch_size: int = 64,
    num_workers: int = 0,
    description: str = "Embedding tiles",
) -> Embeddings:
    """Embeds the centre of every tile of a dataset, on the encoder's device.

    Args:
        encoder: The encoder; its training mode is restored afterwards.
        dataset: An eva dataset: yields (tile, label, metadata) with uint8 tiles (3, H, W), and
            names the tiles by `filename`.
        view_size: Side of the centre crop, in pixels.
        split: Split of the task.
        batch_size: Tiles per batch.
        num_workers: Processes that read tiles.
        description: Text of the progress bar.

    Returns:
        The embeddings, with the metadata as groups.
    """
    device = encoder.mean.device
    embeddings, labels = [], []
    groups: dict[str, list[str]] = {}
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    with in_eval_mode(encoder):
        for tiles, targets, metadata in tqdm(loader, description, leave=False):
            embeddings.append(encoder(center_view(tiles.to(device), view_size)).float().cpu())
            labels.append(targets)
            for name, values in metadata.items():
                groups.setdefault(name, []).extend(values)
    return Embeddings(
        torch.cat(embeddings).numpy(),
        torch.cat(labels).numpy(),
        np.array([dataset.filename(index) for index in range(len(dataset))]),
        {name: np.array(values) for name, values in groups.items()},
        split,
    )
