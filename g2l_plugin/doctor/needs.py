"""How much memory and disk a run needs on its machine, by its settings."""

from __future__ import annotations

from g2l_plugin.planning import disk
from g2l_plugin.planning.settings import Model, Settings

TEACHER, STUDENT = (
    Model("", "hf-hub:bioptimus/H-optimus-0", dtype="bfloat16"),
    Model("", "hf-hub:histai/hibou-L"),
)
"""The networks of the recipe, in place of those that are not known. A step with them was measured
on a GPU (docs/training.md)."""

PROCESS = 0.9e9
"""Bytes of the run's process, and of each worker: a third of the 2,868 MB of a process with two
workers on 1,000 slides, without their buffer. Source: docs/reading.md (`benchmarks/memory.py`)."""

PREFETCHED = 2
"""Batches that each worker reads ahead: eva's `prefetch_factor`."""

OPEN_FILES = 256
"""Files that a process needs: 64 open slides (`max_open_slides`), libraries, pipes to workers."""


def host_memory(settings: Settings, workers: int, devices: int) -> float:
    """Bytes that a run needs in the machine's memory, for the devices of this machine."""
    buffer = settings.buffer_tiles * settings.tile_bytes
    return devices * (buffer + (1 + workers) * PROCESS)


def shared_memory(settings: Settings, workers: int, devices: int, forked: bool) -> float:
    """Bytes that a run needs in /dev/shm.

    None, unless workers are not forked (Python 3.14 and newer): `slides/block_reader.py`.
    """
    if workers == 0 or forked:
        return 0
    return devices * (settings.buffer_tiles + workers * PREFETCHED * 32) * settings.tile_bytes


def output_size(settings: Settings) -> float:
    """Bytes of a run's folder: its checkpoints and the student."""
    parameters = _parameters(settings.student, STUDENT)
    return disk.CHECKPOINTS * disk.checkpoint(parameters) + disk.weights(parameters)


def index_size(settings: Settings) -> float:
    """Bytes of the index of the slides, with their pictures."""
    return disk.index(settings.n_slides or 1000)


def cache_size(settings: Settings) -> float:
    """Bytes of the teachers' embeddings of one view of each tile."""
    widths = [model.known.embedding_dim if model.known else 1536 for model in settings.teachers]
    return disk.embeddings((settings.n_slides or 1000) * disk.TILES_PER_SLIDE, sum(widths))


def download_size(settings: Settings) -> float:
    """Bytes of the weights that are not in the Hub's cache, in float32."""
    missing = {
        model.repo_id: disk.weights(model.parameters)
        for model in (*settings.teachers, settings.student)
        if model.repo_id and model.parameters and not model.is_cached()
    }
    return sum(missing.values())


def _parameters(model: Model, otherwise: Model) -> int:
    return model.parameters or otherwise.parameters or 0
