"""One image encoder, whatever its origin: images in [0, 1] in, embeddings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Which weights an encoder holds.

    Attributes:
        source: What was asked for, e.g. `hf-hub:bioptimus/H-optimus-0`.
        revision: The commit it resolved to on the Hub; None for other sources.
        file: Name of the weights file, where there is one.
        sha256: Hash of that file.
        license: Licence identifier, where the source or the table of known encoders names one.
        pretrained: False for random weights.
    """

    source: str
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    license: str | None = None
    pretrained: bool = True


class Encoder(nn.Module):
    """A network with its own normalisation and a note of where its weights are from."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        provenance: Provenance,
    ) -> None:
        """Initializes the encoder.

        Args:
            model: Takes normalised images (B, 3, H, W), gives embeddings (B, D).
            mean: Normalisation mean, RGB, of images in [0, 1].
            std: Normalisation standard deviation, RGB.
            provenance: Which weights the model holds.
        """
        super().__init__()
        self.model = model
        self.provenance = provenance
        self.embedding_dim = _embedding_dim(model)
        # Not in the state dict: normalisation is a setting of the source, not something learnt.
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds images.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).

        Returns:
            Embeddings (B, D).
        """
        return self.model((images - self.mean) / self.std)

    def describe(self) -> str:
        """One line that leaves no doubt which weights these are."""
        provenance = self.provenance
        parameters = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        revision = f"@{provenance.revision}" if provenance.revision else ""
        weights = (
            f"{provenance.file} sha256 {provenance.sha256[:12]}"
            if provenance.sha256
            else ("weights of its registry" if provenance.pretrained else "random weights")
        )
        mean, std = (
            " ".join(f"{value:.4g}" for value in buffer.flatten().tolist())
            for buffer in (self.mean, self.std)
        )
        return (
            f"{provenance.source}{revision}: {weights}, {parameters:.2f} M parameters, "
            f"{self.embedding_dim} features, mean {mean}, std {std}"
        )


def _embedding_dim(model: nn.Module) -> int:
    for name in ("head_hidden_size", "num_features"):
        if isinstance(getattr(model, name, None), int):
            return getattr(model, name)
    # A wrapper may join several tokens of the network inside, so only its output tells.
    inner = getattr(model, "model", None)
    size = (getattr(inner, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    device = next(model.parameters()).device
    was_training = model.training
    with torch.no_grad():
        embeddings = model.eval()(torch.zeros(1, *size, device=device))
    model.train(was_training)
    return embeddings.shape[-1]
