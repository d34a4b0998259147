"""Images of a folder as tiles, without labels."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from eva.vision.utils.io import read_image_as_tensor

from g2l_plugin.errors import UserError, in_one_line

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class TileFolder:
    """The images in a folder and the folders below it, sorted by path: uint8 RGB (3, H, W).

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (64, 64), "purple").save("tumour.png")
        >>> tiles = TileFolder(".")
        >>> len(tiles), tiles[0].shape
        (1, torch.Size([3, 64, 64]))
    """

    def __init__(self, root: str) -> None:
        """Lists the images.

        Args:
            root: The folder.

        Raises:
            UserError: There is no such folder, or no image in it.
        """
        folder = Path(root)
        self.paths = sorted(
            path
            for path in (folder.rglob("*") if folder.is_dir() else ())
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
        if not self.paths:
            raise UserError(
                f"{root} is no folder with images ({', '.join(_SUFFIXES)}). Give a folder of "
                "tiles, or a manifest of them."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.paths[index]
        try:
            return read_image_as_tensor(str(path))
        except (OSError, ValueError, cv2.error) as error:
            raise UserError(
                f"Tile {path} cannot be read ({in_one_line(error)}). Write it again or remove it."
            ) from error
