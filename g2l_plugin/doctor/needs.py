"""How much memory and disk a run needs, from what was measured and from counted weights."""

from __future__ import annotations

import numpy as np

from g2l_plugin.doctor.settings import Model, Settings

MEASURED = {32: 16.2e9, 64: 29.5e9, 128: 44.6e9}
"""Peak bytes of a step on the device by its batch, H-optimus-0 in bfloat16 to a ViT-L under bf16
autocast, eager, on an H200 with PyTorch 2.11. Source: docs/training.md (`benchmarks/step.py`)."""

_TEACHER, _STUDENT = (
    Model("", "hf-hub:bioptimus/H-optimus-0", dtype="bfloat16"),
    Model("", "hf-hub:histai/hibou-L"),
)
"""The networks of that measurement."""

_TRAINED = 16
"""Bytes of a weight in training: itself, its gradient and AdamW's two moments, in float32."""

_SAVED = 12
"""Bytes of a weight in a checkpoint: itself and AdamW's two moments, in float32."""

DEVICE_OVERHEAD = 1e9
"""Bytes on the device beside PyTorch's tensors: CUDA itself, its libraries, gaps. A round figure
for what `nvidia-smi` shows on top of what PyTorch counts."""

PROCESS = 0.9e9
"""Bytes of the run's process, and of each worker: a third of the 2,868 MB of a process with two
workers on 1,000 slides, without their buffer. Source: docs/reading.md (`benchmarks/memory.py`)."""

PREFETCHED = 2
"""Batches that each worker reads ahead: eva's `prefetch_factor`."""

OPEN_FILES = 256
"""Files that a process needs: 64 open slides (`max_open_slides`), libraries, pipes to workers."""

_TILE_RECORD = 16
"""Bytes of a tile in the index: x, y, tissue, sharpness. Source: `slides/index_files.py`."""

_TILES_PER_SLIDE = 7500
"""Tiles of a slide at 0.5 µm/px. Source: docs/cost.md."""

_PICTURE = 100e3
"""Bytes of a slide's picture in the index, rounded up."""


def is_measured(settings: Settings) -> bool:
    """Whether the device's memory was measured for networks of this size."""
    (teacher, *further), student = settings.teachers, settings.student
    return (
        not further
        and teacher.dtype == _TEACHER.dtype
        and teacher.parameters == _TEACHER.parameters
        and student.parameters == _STUDENT.parameters
    )


def device_memory(settings: Settings, batch: int) -> float:
    """Bytes that training needs on a device.

    Weights, gradients and moments are counted. Activations are those of the measurement. They grow
    with depth x width, and weights with depth x width²: for a smaller student, the square root of
    the ratio of weights is an upper bound of the ratio of activations; for a larger one, the ratio
    itself.

    Args:
        settings: The run. Networks that are not known count as those of the measurement.
        batch: Tiles in a forward pass.
    """
    measured = list(MEASURED)
    fixed = _fixed((_TEACHER,), _STUDENT)
    peak = np.interp(batch, [0, *measured], [fixed, *MEASURED.values()])
    activations = (peak - fixed) * max(batch / measured[-1], 1)
    ratio = _parameters(settings.student, _STUDENT) / _parameters(_STUDENT, _STUDENT)
    activations *= ratio**0.5 if ratio < 1 else ratio
    return float(_fixed(settings.teachers, settings.student) + activations)


def largest_batch(settings: Settings, memory: float) -> int | None:
    """The largest power of two that fits into a device's memory; None if no tile does."""
    sizes = [2**n for n in range(11) if 2**n < settings.batch_size]
    fitting = [n for n in sizes if device_memory(settings, n) + DEVICE_OVERHEAD <= memory]
    return max(fitting, default=None)


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
    """Bytes of a run's folder: two checkpoints, one being written, the last, and the student."""
    return _parameters(settings.student, _STUDENT) * (4 * _SAVED + 4)


def index_size(settings: Settings) -> float:
    """Bytes of the index of the slides, with their pictures."""
    return (settings.n_slides or 1000) * (_TILES_PER_SLIDE * _TILE_RECORD + _PICTURE)


def cache_size(settings: Settings) -> float:
    """Bytes of the teachers' embeddings of one view of each tile, in bfloat16."""
    widths = [model.known.embedding_dim if model.known else 1536 for model in settings.teachers]
    return (settings.n_slides or 1000) * _TILES_PER_SLIDE * 2 * sum(widths)


def download_size(settings: Settings) -> float:
    """Bytes of the weights that are not in the Hub's cache, in float32."""
    missing = {
        model.repo_id: 4 * model.parameters
        for model in (*settings.teachers, settings.student)
        if model.repo_id and model.parameters and not model.is_cached()
    }
    return sum(missing.values())


def _fixed(teachers: tuple[Model, ...], student: Model) -> float:
    """Bytes that do not depend on the batch: weights, the student's gradients and moments."""
    weights = sum(teacher.bytes(_parameters(teacher, _TEACHER)) for teacher in teachers)
    return weights + _TRAINED * _parameters(student, _STUDENT)


def _parameters(model: Model, otherwise: Model) -> int:
    return model.parameters or otherwise.parameters or 0
