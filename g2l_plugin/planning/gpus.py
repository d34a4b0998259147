"""GPUs that are rented: memory, nominal speed and an assumed price."""

from __future__ import annotations

import dataclasses

from g2l_plugin.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        key: Its short name: model and GB.
        name: Its maker's name.
        memory: Its memory in bytes, as its maker states it.
        tflops: Nominal dense bfloat16 speed in TFLOP/s, as its maker states it.
        dollars: Assumed price of an hour.
    """

    key: str
    name: str
    memory: float
    tflops: float
    dollars: float


GPUS = {
    gpu.key: gpu
    for gpu in (
        Gpu("h200-141", "H200", 141e9, 989, 3.5),
        Gpu("h100-80", "H100", 80e9, 989, 2.5),
        Gpu("a100-80", "A100 80GB", 80e9, 312, 1.6),
        Gpu("a100-40", "A100 40GB", 40e9, 312, 1.3),
        Gpu("l40s-48", "L40S", 48e9, 362, 1.0),
        Gpu("a6000-48", "RTX A6000", 48e9, 154.8, 0.8),
        Gpu("rtx4090-24", "GeForce RTX 4090", 24e9, 165.2, 0.5),
        Gpu("a10-24", "A10", 24e9, 125, 0.7),
        Gpu("l4-24", "L4", 24e9, 121, 0.6),
    )
}
"""By key, the largest first. Speeds from NVIDIA's data sheets, where those "with sparsity" are
halved; prices are assumed."""


def find_gpu(key: str) -> Gpu:
    """Finds a GPU by its key.

    Raises:
        UserError: It is not listed.
    """
    if (gpu := GPUS.get(key.lower())) is None:
        raise UserError(f"Unknown GPU {key!r}. Expected one of {', '.join(GPUS)}.")
    return gpu
