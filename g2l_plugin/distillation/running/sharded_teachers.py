"""Teachers that no device has to hold whole: each keeps a part of their weights (FSDP2)."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError


def leave_out_of_ddp(module: nn.Module, part: str) -> None:
    """Makes DDP, which will wrap a module, neither copy nor keep the weights of a part of it."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    own = [name for name in names if name.startswith(f"{part}.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, own)


def shard(encoder: Encoder) -> None:
    """Divides the weights of a frozen encoder between the devices.

    Each block gathers its own when it is reached, and lets them go again. All devices must use the
    encoder together, as often as each other.

    Raises:
        UserError: The devices have loaded different weights.
    """
    loaded: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(loaded, encoder.provenance.sha256)
    if len(set(loaded)) > 1:
        raise UserError(
            f"The machines have different weights of {encoder.provenance.source}: SHA-256 "
            f"{', '.join(sorted(str(own)[:12] for own in set(loaded)))}. Give all the same file."
        )
    mesh = init_device_mesh(encoder.mean.device.type, (len(loaded),))
    for block in _blocks(encoder):
        fully_shard(block, mesh=mesh)
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True)


def largest_block(encoder: Encoder) -> int:
    """Bytes of the weights of an encoder's largest block, which are gathered together."""
    parts = _blocks(encoder) or [encoder]
    return max(sum(weight.nbytes for weight in part.parameters()) for part in parts)


def _blocks(encoder: Encoder) -> list[nn.Module]:
    """The parts of the largest sequence in a network: the blocks of a vision transformer."""
    sequences = [
        part for part in encoder.modules() if isinstance(part, nn.Sequential | nn.ModuleList)
    ]
    largest = max(sequences, key=_count, default=nn.ModuleList())
    return [block for block in largest if _count(block)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
