"""Embeddings of a labelled tile dataset."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.slides.views import center_view


@torch.inference_mode()
def embed_tiles(
    encoder: Encoder,
    dataset: Dataset,
    view_size: int,
    batch_size: int = 64,
    num_workers: int = 0,
    description: str = "Embedding tiles",
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds the centre of every tile of a dataset, on the encoder's device.

    Args:
        encoder: The encoder; left in the mode it was in.
        dataset: Yields (tile, label, ...), tile uint8 (3, H, W).
        view_size: Side of the centre crop, in pixels.
        batch_size: Tiles per batch.
        num_workers: Processes that read tiles.
        description: What the progress bar says.

    Returns:
        Embeddings, float32 (N, D), and labels (N,).
    """
    device = encoder.mean.device
    was_training = encoder.training
    encoder.eval()
    embeddings, labels = [], []
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    for tiles, targets, *_ in tqdm(loader, description, leave=False):
        embeddings.append(encoder(center_view(tiles.to(device), view_size)).float().cpu())
        labels.append(targets)
    encoder.train(was_training)
    return torch.cat(embeddings).numpy(), torch.cat(labels).numpy()
