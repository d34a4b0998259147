"""Frozen encoders whose linear layers compute in float8, by torchao."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from g2l_plugin.errors import UserError

_CAPABILITY = (8, 9)
"""The first NVIDIA GPUs that multiply in float8: https://docs.nvidia.com/cuda/parallel-thread-execution/"""


def require_float8(source: str) -> None:
    """Raises a UserError if torchao is missing, or a GPU that computes in float8.

    Args:
        source: The source of the encoder that is to do so.
    """
    if find_spec("torchao") is None:
        raise UserError(
            f"dtype float8 of {source} needs torchao: pip install 'g2l-plugin[float8]'."
        )
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= _CAPABILITY):
        raise UserError(
            f"dtype float8 of {source} needs a GPU that computes in it: NVIDIA's L4, RTX 40, H100 "
            "or later. Use bfloat16 (TEACHER_DTYPE=bfloat16)."
        )


def compute_in_float8(network: nn.Module) -> None:
    """Replaces the weights of a network's linear layers, in place.

    Weights are in float8 with a scale for each output, and activations are scaled row by row as
    they come. All else stays in bfloat16. The network can no longer be trained.

    Args:
        network: A network in bfloat16 on any device.
    """
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    quantize_(network, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
