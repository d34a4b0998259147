"""An encoder on its device, for tiles of one size."""

from __future__ import annotations

from typing import Any

import torch
from loguru import logger
from torchvision.transforms.v2 import functional

from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.slides.tile_grid import TileGrid
from g2l_plugin.transfer import to_device

PRECISIONS = ("32-true", "bf16-mixed")
"""Lightning's names of the precisions that a model may compute in."""

ACCELERATORS = ("auto", "cpu", "cuda")
"""Where a model may compute."""


class TileModel:
    """A model that embeds the tiles of a grid at its input size.

    Attributes:
        source: The model's source.
        tile_size: Side of a tile, in pixels.
        embedding_dim: Width D of the embeddings.
    """

    def __init__(
        self, model: EncoderSource, grid: TileGrid, precision: str, accelerator: str
    ) -> None:
        """Loads the model.

        Args:
            model: Its source with settings.
            grid: The tiles, which are square.
            precision: One of `PRECISIONS`.
            accelerator: One of `ACCELERATORS`.

        Raises:
            UserError: The model cannot be loaded or identified, or there is no such device.
        """
        if precision not in PRECISIONS:
            raise UserError(
                f"`precision` (--precision) is {precision!r}. Expected {' or '.join(PRECISIONS)}."
            )
        self._device = _find_device(accelerator)
        encoder = model.load()
        self.source = model.source
        if encoder.provenance.sha256 is None:
            raise UserError(
                f"{self.source} has random weights, which no hash tells from others. Give a model "
                "with weights."
            )
        if encoder.output == "patch_tokens":
            raise UserError("One embedding a tile is written: `output` may not be patch_tokens.")
        self._encoder = encoder.eval().to(self._device)
        self._grid = grid
        self._precision = precision
        self.tile_size = grid.width
        self.embedding_dim = encoder.embedding_dim
        self._input_size = encoder.input_size or (grid.height, grid.width)
        logger.info(f"Embedding on {_name(self._device)}, {precision}.")
        if self._input_size != (grid.height, grid.width):
            height, width = self._input_size
            logger.warning(
                f"Tiles of {grid.width} px at {grid.target_mpp:g} microns per pixel are resized to "
                f"the {width}x{height} px that {self.source} takes: it sees "
                f"{grid.target_mpp * grid.width / width:g} microns per pixel. Without resizing: "
                f"--tile-size {width}."
            )

    def settings(self) -> dict[str, Any]:
        """Fields of `Settings` that the model and the tiles decide."""
        encoder = self._encoder
        return {
            "model_sha256": encoder.provenance.sha256,
            "model_output": encoder.output,
            "model_mean": tuple(encoder.mean.flatten().tolist()),
            "model_std": tuple(encoder.std.flatten().tolist()),
            "model_input_size": self._input_size[0],
            "tile_size": self._grid.width,
            "mpp": self._grid.target_mpp,
            "precision": self._precision,
        }

    def facts(self) -> dict[str, str]:
        """Where the weights are from, as attributes of a file."""
        return {
            "model_source": self.source,
            "model_revision": self._encoder.provenance.revision or "",
        }

    @torch.inference_mode()
    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embeds tiles.

        Args:
            tiles: uint8 (B, 3, H, W), on the host.

        Returns:
            float32 (B, D), on the model's device.

        Raises:
            UserError: The GPU has too little memory.
        """
        images = to_device(tiles, self._device)
        if images.shape[-2:] != self._input_size:
            # On uint8, as eva's ResizeAndCrop does: bilinear with antialiasing.
            images = functional.resize(images, list(self._input_size))
        try:
            with torch.autocast(
                self._device.type, torch.bfloat16, enabled=self._precision == "bf16-mixed"
            ):
                return self._encoder(functional.to_dtype(images, scale=True)).float()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{_name(self._device)} has too little memory for {len(tiles)} tiles at once. "
                "Lower --batch-size, and run the same command again: it continues from here."
            ) from error


def _find_device(accelerator: str) -> torch.device:
    if accelerator not in ACCELERATORS:
        raise UserError(
            f"`accelerator` (--accelerator) is {accelerator!r}. Expected "
            f"{' or '.join(ACCELERATORS)}."
        )
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no GPU that PyTorch can use. Give --accelerator cpu, or auto.")
    use_cuda = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
