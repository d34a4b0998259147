"""Reads weights, from safetensors only: all of them, with one copy in memory."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from g2l_plugin.errors import UserError
from g2l_plugin.files import hash_file

WEIGHTS = "model.safetensors"
"""The only file from which weights are read."""

_PICKLES = (b"PK", b"\x80\x02")
"""First bytes of files that torch.save writes: a zip of pickles, or a pickle."""

_LFS_POINTER = b"version https://git-lfs"
"""First bytes of the file that git leaves in place of a large one."""

_N_NAMED = 3
"""How many weights an error names."""


def build_network(
    build: Callable[[], nn.Module],
    file: Path,
    source: str,
    convert: Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Builds a network with the weights of a file, which must match the network exactly.

    The network is built on the meta device and given the file's tensors: this needs no second copy
    and no time for random weights. Only a network with computed tables that are not saved (rotary
    embeddings) is also built in memory.

    Args:
        build: Builds the network with random weights.
        file: The safetensors file.
        source: Its source, for errors.
        convert: Turns the file's tensors into the network's state dict.
        dtype: Precision of the weights.

    Raises:
        UserError: The file is not a complete safetensors file, or holds another network's weights.
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
    """Reads a safetensors file into memory, one tensor at a time.

    The file itself is not kept mapped: written over, it would change what a run computes.

    Args:
        file: The file.
        source: Its source, for errors.
        dtype: Precision to convert floating-point tensors to.

    Raises:
        UserError: The file is not a complete safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {}
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                state[name] = tensor.to(
                    dtype if tensor.is_floating_point() else tensor.dtype, copy=True
                )
            return state
    except SafetensorError as error:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise UserError(
                    f"{source}: {file} is a Git-LFS pointer, and not the weights that it names. "
                    "Fetch them in its folder: git lfs pull"
                ) from error
            if start[:2] in _PICKLES:
                raise UserError(
                    f"{source}: {file} is a pickle despite its name, and could run code when it is "
                    "read. Expected a safetensors file; convert a copy that you trust."
                ) from error
        raise UserError(
            f"{source}: {file} is not a complete safetensors file ({error}). Download it again; in "
            "the Hub's cache, delete it first."
        ) from error


@contextlib.contextmanager
def hashed(file: Path, source: str) -> Iterator[str]:
    """Yields the SHA-256 of a weights file that is read in the block, in hexadecimal.

    Args:
        file: The file.
        source: Its source, for errors.

    Raises:
        UserError: The file is in the Hub's cache, where files are named by their hash, and its
            name is another hash; or it was changed before it was read.
    """
    before = _version(file)
    sha256 = hash_file(file)
    blob = file.resolve()
    if (
        blob.parent.name == "blobs"
        and re.fullmatch("[0-9a-f]{64}", blob.name)
        and blob.name != sha256
    ):
        raise UserError(
            f"{source}: {blob} is damaged: its sha256 is {sha256[:12]}…, expected "
            f"{blob.name[:12]}…. Delete it, and run the same command again."
        )
    yield sha256
    if _version(file) != before:
        raise UserError(
            f"{source}: {file} was changed while it was read. Run the same command again once it "
            "is complete."
        )


def _version(file: Path) -> tuple[int, int, int]:
    """What changes with a file's content, without reading it."""
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def hash_tensors(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's weights: names, types, shapes and values."""
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
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
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
            f"{source}: {file.name} does not fit the network that its config.json and "
            f"`model_kwargs` describe: {'; '.join(problems)}. Check that they belong together."
        )
