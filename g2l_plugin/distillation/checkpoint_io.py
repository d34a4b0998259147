"""Writing checkpoints so that a whole one is always there, and finding the newest whole one."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from loguru import logger
from typing_extensions import override

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import flush_to_disk, new_file

LAST = "last.ckpt"
"""Name of the checkpoint of a run that has come to its end."""

_STEP = re.compile(r"step=(\d+)\.ckpt")


class CheckpointWriteError(UserError):
    """A checkpoint could not be written; what stood in its place stands there still."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk itself, and only then renames it.

    The file is streamed: a copy of the whole state in memory, as Lightning makes, is not needed.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointWriteError: The disk is full, or cannot be written to.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                torch.save(checkpoint, partial)
                flush_to_disk(partial)
            flush_to_disk(path.parent)  # the rename
        except (OSError, RuntimeError) as error:  # the latter is what torch says of a full disk
            if isinstance(error, UserError):
                raise
            raise CheckpointWriteError(
                f"{path} cannot be written: {in_one_line(error)}. Make room on that disk."
            ) from error


def step_file(step: int) -> str:
    """Name of the checkpoint after so many optimizer steps."""
    return f"step={step:08d}.ckpt"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    folder = run_folder / "checkpoints"
    last = [path for path in (folder / LAST,) if path.is_file()]
    steps = [path for path in folder.glob("step=*.ckpt") if _STEP.fullmatch(path.name)]
    return last + sorted(steps, key=lambda path: int(path.name[5:-5]), reverse=True)


def newest_whole(run_folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read; damaged ones are told and passed over."""
    for path in list_checkpoints(run_folder):
        if (damage := find_damage(path)) is None:
            return path
        logger.warning(f"{path} is damaged ({damage}) and passed over.")
    return None


def find_damage(path: Path) -> str | None:
    """Reads a checkpoint to its end; says what is wrong with it, None where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{broken} has another checksum"
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # zip and torch have many ways to say it
        return in_one_line(error) or type(error).__name__
    return None
