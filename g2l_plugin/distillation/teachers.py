"""The teachers of a run: frozen encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from g2l_plugin.distillation.running.micro_batches import in_micro_batches
from g2l_plugin.encoders.encoder import EmbeddingAndGrid, Encoder
from g2l_plugin.encoders.load import EncoderSource


class Teachers(nn.Module):
    """Frozen encoders. They are in no state dict and stay in evaluation mode."""

    def __init__(self, sources: list[EncoderSource]) -> None:
        """Loads the teachers."""
        super().__init__()
        self._encoders = nn.ModuleList(
            source.load().eval().requires_grad_(False) for source in sources
        )

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

    def forward(
        self, images: torch.Tensor, micro_batch_size: int | None = None
    ) -> list[torch.Tensor]:
        """Embeds images with each teacher.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).
            micro_batch_size: Images per forward pass; None passes all.

        Returns:
            Embeddings of each teacher, (B, D_t), which autograd may keep.
        """
        return [embed(encoder, images, micro_batch_size) for encoder in self.encoders]


def embed(
    encoder: Encoder, images: torch.Tensor, micro_batch_size: int | None = None
) -> torch.Tensor:
    """Embeds images with a frozen encoder.

    Args:
        encoder: The encoder.
        images: RGB in [0, 1], (B, 3, H, W).
        micro_batch_size: Images per forward pass; None passes all.

    Returns:
        Embeddings (B, D_t), which autograd may keep. Weights in half precision give embeddings in
        half precision.
    """
    return _in_parts(encoder, images, micro_batch_size, False)[0]


def embed_with_grid(
    encoder: Encoder, images: torch.Tensor, micro_batch_size: int | None = None
) -> EmbeddingAndGrid:
    """Like `embed`, with the features in place (B, C_t, H_t, W_t) too."""
    return EmbeddingAndGrid(*_in_parts(encoder, images, micro_batch_size, True))


def _in_parts(
    encoder: Encoder, images: torch.Tensor, micro_batch_size: int | None, with_grid: bool
) -> list[torch.Tensor]:
    # Half-precision weights need no autocast: on CUDA it would compute layer norms in float32,
    # whose results the next layer rounds again.
    half = next(encoder.parameters()).dtype != torch.float32
    mixed = torch.is_autocast_enabled(images.device.type) and not half
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=mixed):
        joined = in_micro_batches(
            lambda part: encoder(part, True) if with_grid else (encoder(part),),
            images,
            micro_batch_size,
        )
    return [part.clone() for part in joined]  # autograd may not keep an inference tensor
