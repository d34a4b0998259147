"""Known teachers and students: what their repositories do not say, or say only to the admitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class KnownEncoder:
    """Facts of a published encoder.

    Attributes:
        source: The source that `load_encoder` takes.
        mean: Normalisation mean, RGB.
        std: Normalisation standard deviation, RGB.
        embedding_dim: Width of the embeddings.
        parameters: Number of weights, counted with timm.
        license: Licence identifier as the Hub writes it.
        gated: Whether the Hub asks for an agreement first.
        model_kwargs: Arguments that `timm.create_model` needs beyond the repository's config.
        alternative: A source of the same weights that is not gated.
        repo_id: The repository on the Hub, where the source does not say it.
    """

    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embedding_dim: int
    parameters: int
    license: str
    gated: bool = False
    model_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    alternative: str | None = None
    repo_id: str | None = None


_H_OPTIMUS_0: dict[str, Any] = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "embedding_dim": 1536,
    "parameters": 1_134_774_272,
    "license": "apache-2.0",
    "model_kwargs": {"init_values": 1e-5, "dynamic_img_size": False},
}
_H_OPTIMUS_0_OPEN = "hf-hub:1aurent/vit_giant_patch14_reg4_224.h-optimus-v0"

KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    encoder.source: encoder
    for encoder in (
        KnownEncoder(
            source="hf-hub:bioptimus/H-optimus-0",
            gated=True,
            alternative=_H_OPTIMUS_0_OPEN,
            **_H_OPTIMUS_0,
        ),
        KnownEncoder(source=_H_OPTIMUS_0_OPEN, **_H_OPTIMUS_0),
        KnownEncoder(
            source="eva:pathology/bioptimus_h_optimus_0",
            gated=True,
            alternative=_H_OPTIMUS_0_OPEN,
            repo_id="bioptimus/H-optimus-0",
            **_H_OPTIMUS_0,
        ),
        KnownEncoder(
            source="hf-hub:histai/hibou-L",
            mean=(0.7068, 0.5755, 0.722),
            std=(0.195, 0.2316, 0.1816),
            embedding_dim=1024,
            parameters=303_657_216,
            license="apache-2.0",
        ),
    )
}
"""Known encoders by source."""
