"""Reading weights: from safetensors only, every one of them, and never two copies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from g2l_plugin.errors import UserError

WEIGHTS = "model.safetensors"
"""The only file that weights are read from."""

_PICKLES = (b"PK", b"\x80\x02")
"""How files of torch.save begin: as a zip of pickles, or as a pickle."""

_N_NAMED = 3
"""Names of weights that fit into one line."""


def build_network(
    build: Callable[[], nn.Module],
    file: Path,
    source: str,
    convert: Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Builds a network whose weights are those of a file.

    It is built without memory and takes the file's tensors as its own: there is no second copy, and
    no time goes into random weights; only a network with tables that are computed and not saved (of
    rotary embeddings) is built with both first. Nothing of the network may be missing in the file,
    nor the other way round.

    Args:
        build: Builds the network with random weights.
        file: The safetensors file.
        source: Its source, for errors.
        convert: Turns the file's tensors into the network's state dict.
        dtype: Precision to hold the weights in.

    Raises:
        UserError: The file is no safetensors file, is not whole, or is of another network.
    """
    with torch.device("meta"):
        network = build()
    state = convert(read_tensors(file, source, dtype), network)
    _check_fit(state, network.state_dict(), file, source)
    if {name for name, _ in network.named_buffers()} - state.keys():
        network = build().to(dtype)
    network.load_state_dict(state, assign=True)
    return network


def read_tensors(
    file: Path, source: str, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Reads a safetensors file, one tensor after the other.

    Args:
        file: The file.
        source: Its source, for errors.
        dtype: Precision to convert floating-point tensors to.

    Raises:
        UserError: The file is no safetensors file, or not whole.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {}
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            return state
    except SafetensorError as error:
        with file.open("rb") as stream:
            if stream.read(2) in _PICKLES:
                raise UserError(
                    f"{source}: {file} is a pickle under another name, which could run code when "
                    "it is read. Expected a safetensors file; convert a copy that you trust."
                ) from error
        raise UserError(
            f"{source}: {file} is no whole safetensors file ({error}). Fetch it anew; in the Hub's "
            "cache, remove it first."
        ) from error


def hash_file(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_checked(file: Path, source: str) -> str:
    """The SHA-256 of a weights file, in hexadecimal.

    Args:
        file: The file.
        source: Its source, for errors.

    Raises:
        UserError: The Hub's cache, which names a file by its hash, names it otherwise.
    """
    sha256 = hash_file(file)
    blob = file.resolve()
    if (
        blob.parent.name == "blobs"
        and re.fullmatch("[0-9a-f]{64}", blob.name)
        and blob.name != sha256
    ):
        raise UserError(
            f"{source}: {blob} is damaged: its sha256 is {sha256[:12]}… and not {blob.name[:12]}…. "
            "Remove it, and run the same again."
        )
    return sha256


def hash_tensors(network: nn.Module) -> str:
    """The SHA-256 of a network's names, types, shapes and values, for weights without a file."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_fit(
    state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], file: Path, source: str
) -> None:
    other_shapes = [
        f"{name} is {tuple(state[name].shape)} and not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} weights {what} ({', '.join([*names[:_N_NAMED], '…'][: len(names)])})"
        for what, names in (
            ("missing", sorted(expected.keys() - state.keys())),
            ("unknown", sorted(state.keys() - expected.keys())),
            ("of another shape", other_shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: {file.name} is of another network than its config.json and `model_kwargs` "
            f"say: {'; '.join(problems)}. Check both, and that the file belongs to them."
        )
