"""Checks of the folders that a run writes to: write access and room."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from g2l_plugin.doctor import needs
from g2l_plugin.doctor.finding import Finding, gigabytes, ok, problem
from g2l_plugin.planning.settings import Settings


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that a run writes to, which may not exist yet.

    Attributes:
        variable: The variable that names it.
        path: The folder.
        need: Bytes that the run writes there.
        disk: Number of the disk that holds it.
        free: Free bytes there.
        error: Why nothing can be written there; "" if it can.
    """

    variable: str
    path: Path
    need: float
    disk: int = 0
    free: int = 0
    error: str = ""


def check_disk(settings: Settings) -> list[Finding]:
    """Whether the run can write its files."""
    wanted = [("OUTPUT_ROOT", settings.output_root, needs.output_size(settings))]
    if settings.packed_root is None:
        wanted.append(("INDEX_ROOT", settings.index_root, needs.index_size(settings)))
    if settings.teacher_cache is not None:
        wanted.append(("TEACHER_CACHE", settings.teacher_cache, needs.cache_size(settings)))
    if download := needs.download_size(settings):
        wanted.append(("HF_HOME", Path(constants.HF_HUB_CACHE), download))
    return judge_folders([find_folder(*folder) for folder in wanted])


def find_folder(variable: str, path: Path, need: float) -> Folder:
    """Asks the system for a folder, or for the nearest one above it that exists."""
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        # Access rights alone do not tell: a disk may be read-only, and root may do everything.
        with tempfile.TemporaryFile(dir=existing):
            pass
        usage = shutil.disk_usage(existing)
        return Folder(variable, path, need, existing.stat().st_dev, usage.free)
    except OSError as error:
        return Folder(variable, path, need, error=f"{existing}: {error.strerror}")


def judge_folders(folders: Sequence[Folder]) -> list[Finding]:
    """Judges folders; those of one disk share its room."""
    findings = [
        problem(
            f"{folder.variable}={folder.path} cannot be written to ({folder.error}).",
            f"Set {folder.variable} to a folder with write access.",
        )
        for folder in folders
        if folder.error
    ]
    disks: dict[int, list[Folder]] = {}
    for folder in folders:
        if not folder.error:
            disks.setdefault(folder.disk, []).append(folder)
    for sharing in disks.values():
        need, free = sum(f.need for f in sharing), min(f.free for f in sharing)
        parts = ", ".join(f"{f.variable} {gigabytes(f.need)}" for f in sharing)
        fact = (
            f"{gigabytes(free)} free on the disk of {sharing[0].path}; needed are "
            f"{gigabytes(need)} ({parts})."
        )
        largest = max(sharing, key=lambda f: f.need)
        advice = f"Make room, or set {largest.variable} to a folder on a larger disk."
        findings.append(ok(fact) if need <= free else problem(fact, advice))
    return findings
