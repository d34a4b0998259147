"""The image encoder: images in [0, 1] in, embeddings out, whatever the network's origin."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from g2l_plugin.errors import UserError

Output = Literal["class_token", "class_and_mean_patch", "patch_tokens"]
"""An encoder's output: the class token, or the pooled embedding of a network without one (B, D);
the class token joined with the mean patch token (B, 2 D); or the patch tokens (B, N, D)."""


class EmbeddingAndGrid(NamedTuple):
    """An embedding of each image, and its features in place.

    Attributes:
        embedding: (B, D).
        grid: Patch tokens, or the feature map of a convolutional network, (B, C, H, W).
    """

    embedding: torch.Tensor
    grid: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Identifies an encoder's weights.

    Attributes:
        source: The requested source, e.g. `hf-hub:bioptimus/H-optimus-0`.
        revision: The commit on the Hub; None for other sources.
        file: Name of the weights file; None if eva's registry read it.
        sha256: Hash of the file, or of the tensors if no file is known (`weights.hash_tensors`).
        license: Licence identifier in the source or the table of known encoders; None if neither
            names one.
        pretrained: False for random weights.
    """

    source: str
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    license: str | None = None
    pretrained: bool = True

    def describe(self) -> str:
        """Describes the weights in one line: source, commit, file and hash."""
        revision = f"@{self.revision}" if self.revision else ""
        if not self.pretrained:
            return f"{self.source}{revision}: random weights"
        if self.sha256 is None:
            return f"{self.source}{revision}: weights not yet read"
        return f"{self.source}{revision}: {self.file or 'tensors'} sha256 {self.sha256}"


_USUAL_SIZE = 224

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Encoder(nn.Module):
    """A network with its normalisation and the provenance of its weights.

    Attributes:
        embedding_dim: Width D of the embeddings.
        input_size: Height and width of the images it was trained for, in pixels; None if unknown.
        patch_size: Height and width of a patch, in pixels; None for a network without patches.
        provenance: Identifies the weights.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        provenance: Provenance,
        output: Output = "class_token",
    ) -> None:
        """Initializes the encoder.

        Args:
            model: Maps normalised images (B, 3, H, W) to embeddings (B, D). For patch tokens, it
                needs timm's `forward_features`, which returns all tokens, and `num_prefix_tokens`.
            mean: Normalisation mean, RGB, for images in [0, 1].
            std: Normalisation standard deviation, RGB.
            provenance: Identifies the model's weights.
            output: The tokens to return.

        Raises:
            UserError: The output needs patch tokens, and the network does not return them together
                with a class token.
        """
        super().__init__()
        self.model = model
        self.output = output
        self.provenance = provenance
        self.freeze_batch_norm = False
        self.input_size = _input_size(model)
        self.patch_size = _pair(getattr(getattr(model, "patch_embed", model), "patch_size", None))
        if output not in get_args(Output):
            raise UserError(f"Unknown output {output!r}. Expected {', '.join(get_args(Output))}.")
        # A network without a final norm on its tokens pools them first (DINOv3 in timm).
        has_tokens = getattr(model, "num_prefix_tokens", 0) and not isinstance(
            getattr(model, "norm", None), nn.Identity
        )
        if output != "class_token" and not has_tokens:
            raise UserError(
                f"{provenance.source} does not return patch tokens with a class token, which "
                f"`output: {output}` needs. Use a vision transformer, or `output: class_token`."
            )
        self.embedding_dim = _embedding_dim(model) * (1 + (output == "class_and_mean_patch"))
        # Not in the state dict: normalisation is a setting of the source and is not trained.
        # With values even where the network has none, on the meta device.
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def usual_size(self) -> int:
        """Side of the images that it was trained for, in pixels; 224 if it does not say."""
        return self.input_size[0] if self.input_size else _USUAL_SIZE

    @property
    def training_patients(self) -> list[str]:
        """Patients that it was distilled on, as `list_patients` hashes them; empty if none says."""
        return list(getattr(self.model, "training_patients", None) or ())

    @override
    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        # Here and not where training begins: an evaluation in between sets the mode too.
        if self.freeze_batch_norm:
            for part in self.modules():
                if isinstance(part, _BATCH_NORMS):
                    part.eval()
        return self

    @overload
    def forward(self, images: torch.Tensor) -> torch.Tensor: ...

    @overload
    def forward(self, images: torch.Tensor, with_grid: Literal[True]) -> EmbeddingAndGrid: ...

    def forward(
        self, images: torch.Tensor, with_grid: bool = False
    ) -> torch.Tensor | EmbeddingAndGrid:
        """Embeds images.

        Args:
            images: RGB in [0, 1], (B, 3, H, W).
            with_grid: Whether to return the features in place too; see `check_grid`.

        Returns:
            Embeddings (B, D), or patch tokens (B, N, D) in row-major order; see `Output`.
        """
        network: Any = self.model
        # Normalise before rounding to the weights' precision.
        normalized = ((images - self.mean) / self.std).to(next(network.parameters()).dtype)
        if self.output == "class_token" and not with_grid:
            return network(normalized)
        features = network.forward_features(normalized)  # (B, prefix + N, D) or (B, C, H, W)
        if features.ndim == 4:
            return EmbeddingAndGrid(network.forward_head(features, pre_logits=True), features)
        patches = features[:, network.num_prefix_tokens :]  # (B, N, D)
        if self.output == "patch_tokens":
            return patches
        if self.output == "class_and_mean_patch":
            embedding = torch.cat([features[:, 0], patches.mean(dim=1)], dim=-1)
        elif hasattr(network, "forward_head"):
            embedding = network.forward_head(features, pre_logits=True)
        else:
            embedding = features[:, 0]
        if not with_grid:
            return embedding
        height, width = (
            side // patch
            for side, patch in zip(images.shape[-2:], self.patch_size or (1, 1), strict=True)
        )
        return EmbeddingAndGrid(embedding, patches.mT.unflatten(-1, (height, width)))

    def check_views(self, size: int) -> None:
        """Raises a UserError if views of a size (pixels) do not give one embedding each."""
        self.check_images(size)
        if self.output == "patch_tokens":
            raise UserError(
                f"The `output` of {self.provenance.source} is patch_tokens, but distillation "
                "compares one embedding per tile. Set class_token or class_and_mean_patch."
            )

    def grid_dim(self, size: int) -> int:
        """Features C at each place of the grid of an image.

        Args:
            size: Height and width of the image, in pixels.

        Raises:
            UserError: The network does not give its features in place beside an embedding.
        """
        was_training = self.training
        images = torch.rand(1, 3, size, size, device=self.mean.device)
        try:
            with torch.no_grad():
                embedding, grid = self.eval()(images, with_grid=True)
                same = grid.ndim == 4 and torch.allclose(
                    embedding, self(images), rtol=0.05, atol=0.05
                )
        except (AttributeError, TypeError, ValueError, RuntimeError):  # each network its own
            same = False
        self.train(was_training)
        if not same:
            raise UserError(
                f"{self.provenance.source} does not give patch tokens or a feature map beside its "
                "embedding, which `patch_weight` (PATCH_WEIGHT) needs. Use a network of timm, or "
                "set it to 0."
            )
        return grid.shape[1]

    def check_images(self, size: int) -> None:
        """Checks that the network accepts images of a size.

        Args:
            size: Height and width of the images, in pixels.

        Raises:
            UserError: The network accepts only another size.
        """
        strict = getattr(getattr(self.model, "patch_embed", None), "strict_img_size", False)
        if strict and self.input_size and self.input_size != (size, size):
            height, width = self.input_size
            raise UserError(
                f"{self.provenance.source} accepts images of {height}x{width} px, but its views "
                f"have {size}x{size} px (VIEW_SIZE). Change the view size, or adapt the position "
                f"embeddings: `model_kwargs: {{img_size: {size}}}` (TEACHER_KWARGS, "
                "STUDENT_KWARGS)."
            )

    def count_parameters(self) -> int:
        """Counts the weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def count_flops(self, size: int) -> int:
        """Counts the floating-point operations for one image by running the network.

        Args:
            size: Height and width of the image, in pixels.
        """
        weights = next(self.parameters())
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), in_eval_mode(self), counter:
            self.model(torch.zeros(1, 3, size, size).to(weights))
        return counter.get_total_flops()

    def describe(self) -> str:
        """Describes the weights and the network in one line, for logs."""
        mean, std = (
            " ".join(f"{value:.4g}" for value in buffer.flatten().tolist())
            for buffer in (self.mean, self.std)
        )
        size, patch = (
            f", {name} {'x'.join(map(str, value))}" if value else ""
            for name, value in (("input", self.input_size), ("patch", self.patch_size))
        )
        return (
            f"{self.provenance.describe()}, {self.count_parameters() / 1e6:.2f} M "
            f"parameters, {self.embedding_dim} features{size}{patch}, mean {mean}, std {std}"
        )


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode for the block."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _embedding_dim(model: nn.Module) -> int:
    for name in ("head_hidden_size", "num_features"):
        if isinstance(getattr(model, name, None), int):
            return getattr(model, name)
    # A wrapper may join several tokens of its network, so only its output shows the width.
    weights = next(model.parameters())
    images = torch.zeros(1, 3, *(_input_size(model) or (224, 224)))
    was_training = model.training
    with torch.no_grad():
        embeddings = model.eval()(images.to(weights))
    model.train(was_training)
    return embeddings.shape[-1]


def _input_size(model: nn.Module) -> tuple[int, int] | None:
    # eva's wrappers hold the timm model as `model`.
    for network in (model, getattr(model, "model", None)):
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        size = size or (getattr(network, "pretrained_cfg", None) or {}).get("input_size")
        size = size or getattr(network, "input_size", None)
        if size:
            return _pair(size if isinstance(size, int) else tuple(size)[-2:])
    return None


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
