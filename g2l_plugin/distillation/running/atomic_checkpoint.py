"""Checkpoints that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from typing_extensions import override

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import flush_to_disk, new_file


class CheckpointWriteError(UserError):
    """A checkpoint could not be written; the previous file is unchanged."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, to the disk itself, and then renames it.

    The file is streamed. Lightning's own plugin first makes a copy of the whole state in memory,
    and a kill while it writes leaves no whole checkpoint.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointWriteError: The disk is full or cannot be written to.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                torch.save(checkpoint, partial)
                flush_to_disk(partial)
            flush_to_disk(path.parent)  # the rename
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            if isinstance(error, UserError):
                raise
            raise CheckpointWriteError(
                f"{path} cannot be written: {in_one_line(error)}. Make room on that disk."
            ) from error
