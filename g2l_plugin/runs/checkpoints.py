"""The checkpoints of a run: their names, and which is the newest whole one."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.runs.record import KEY

FOLDER = "checkpoints"
"""Folder of the checkpoints in a run's folder."""

LAST = "last.ckpt"
"""Name of the checkpoint of a run that has ended."""

BEST = "best.ckpt"
"""Name of the checkpoint with the best validation, which a run writes if it is to be published."""

_STUDENT_PREFIX = "student.model."

_STEP = re.compile(r"step=(\d+)\.ckpt")


def step_file(step: int) -> str:
    """Name of the checkpoint after a number of optimizer steps."""
    return f"step={step:08d}.ckpt"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    folder = run_folder / FOLDER
    last = [path for path in (folder / LAST,) if path.is_file()]
    steps = [path for path in folder.glob("step=*.ckpt") if _STEP.fullmatch(path.name)]
    return last + sorted(steps, key=lambda path: int(path.name[5:-5]), reverse=True)


def student_checkpoint(run_folder: Path) -> Path:
    """The checkpoint of a run that has ended whose student is published: the best, or the last."""
    best = run_folder / FOLDER / BEST
    return best if best.is_file() else run_folder / FOLDER / LAST


def newest_whole(run_folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read; damaged ones are reported and skipped."""
    for path in list_checkpoints(run_folder):
        if (damage := find_damage(path)) is None:
            return path
        logger.warning(f"{path} is damaged ({damage}) and skipped.")
    return None


def find_damage(path: Path) -> str | None:
    """Reads a checkpoint to its end; returns what is wrong with it, None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{broken} has another checksum"
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # zip and torch raise many types
        return in_one_line(error) or type(error).__name__
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, its tensors from the mapped file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        # Only tensors and plain values are read: a checkpoint may come from elsewhere.
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many types
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). Expected "
            "checkpoints/last.ckpt of a run; use another of its checkpoints."
        ) from error


def student_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the student's network in a checkpoint, by their names there."""
    return {
        name.removeprefix(_STUDENT_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_STUDENT_PREFIX)
    }


def is_finished(path: Path, max_steps: int) -> bool:
    """Whether the run of a checkpoint had ended, and its limit of steps was not raised since.

    Args:
        path: The checkpoint.
        max_steps: The limit now; -1 for none.
    """
    record = read_checkpoint(path).get(KEY, {})
    if not record.get("finished"):
        return False
    return bool(record["ending"]) or max_steps <= record["step"]
