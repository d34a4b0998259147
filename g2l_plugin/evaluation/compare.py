"""Compares two encoders on the same images: how alike they see them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.invariance import fit_tile
from g2l_plugin.metrics.alignment import effective_rank
from g2l_plugin.runs.validation import compare_embeddings
from g2l_plugin.slides.image_set import ImageSet
from g2l_plugin.slides.image_source import WholeImages, spread_evenly

_MIN_IMAGES = 20
"""Fewer say nothing about neighbours: each tile is compared with its 10 nearest."""


@torch.inference_mode()
def compare_on_images(
    student: Encoder,
    teacher: Encoder,
    images: ImageSet,
    max_images: int = 1000,
    batch_size: int = 32,
) -> dict[str, float]:
    """Compares the embeddings of a student and its teacher, as a run's validation does.

    Args:
        student: The student; its own input size is used, as the teacher's is for the teacher.
        teacher: The teacher.
        images: Images at the resolution that both expect. The shorter side is resized, and the
            centre is used.
        max_images: Images to use, evenly spread.
        batch_size: Images per batch.

    Returns:
        `val/cka` (unbiased, linear), `val/shared_neighbours` (recall@10), their intervals for
        five patients or more, `val/effective_rank` of the student, `tiles` and `patients`.

    Raises:
        UserError: There are fewer than 20 images, or one cannot be read.
    """
    numbers = spread_evenly(len(images), max_images)
    if (n := len(numbers)) < _MIN_IMAGES:
        raise UserError(f"{len(images)} images are too few to compare. Give at least 20.")
    tiles: Any = WholeImages(images)
    parts: dict[Encoder, list[torch.Tensor]] = {student.eval(): [], teacher.eval(): []}
    for start in tqdm(range(0, n, batch_size), "Comparing", unit="batch", leave=False):
        read = [tiles[number] for number in numbers[start : start + batch_size]]
        for encoder, embeddings in parts.items():
            batch = torch.stack([fit_tile(tile, encoder.usual_size) for tile in read])
            embeddings.append(encoder(batch.to(encoder.mean.device)).float().cpu())
    x, y = (torch.cat(embeddings) for embeddings in parts.values())  # (n, D_s), (n, D_t)
    patients = images.table["patient"].to_numpy()[numbers]
    known = patients if len({*patients} - {""}) > 1 and "" not in patients else None
    values = compare_embeddings(x, y, known).values | {"val/effective_rank": effective_rank(x)}
    # As a run records it: an interval of too few patients is none.
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    values["tiles"] = n
    return values if known is None else values | {"patients": len(np.unique(known))}
