"""The folder that the world loads: weights, config.json of timm, and what else belongs to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import timm_config
from g2l_plugin.encoders.hub import CONFIG
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_folder, write_text

README = "README.md"
RESULTS = "results.json"
TRAINING_CONFIG = "config.yaml"


def export_student(
    student: Encoder, folder: str | Path, *, card: str, license: str | None = None
) -> Path:
    """Writes an encoder as a folder that plain timm loads; see `write_folder`.

    Args:
        student: The encoder; its model must be one that timm can build by name.
        folder: The folder to write.
        card: Text of README.md.
        license: Licence identifier for config.json.

    Returns:
        The folder.

    Raises:
        UserError: timm cannot build the model, or its weights are not finite.
    """
    state = student.model.state_dict()
    return write_folder(Path(folder), state, timm_config(student), card=card, license=license)


def write_folder(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: dict[str, Any],
    *,
    card: str,
    license: str | None = None,
    metadata: dict[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes model.safetensors, config.json and README.md, and checks that timm reads them back.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the network without this
    package, its mean and std in `pretrained_cfg`.

    Args:
        folder: The folder; a published one that exists is replaced when the new one is complete.
        state: The network's state dict.
        config: Its config.json, of `timm_config`.
        card: Text of README.md.
        license: Licence identifier for config.json.
        metadata: What to note in the weights file.
        files: More text files, by name.

    Returns:
        The folder.

    Raises:
        UserError: The weights are not those of the network, or not finite, or the folder cannot be
            written, or holds something else; nothing is left.
    """
    folder = folder.expanduser()
    _check_place(folder)
    _check_finite(state)
    if license:
        config = config | {"pretrained_cfg": config["pretrained_cfg"] | {"license": license}}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with _told(folder), new_folder(folder) as partial:
        write_text(partial / CONFIG, json.dumps(config, indent=2) + "\n")
        safetensors.torch.save_file(
            tensors, partial / WEIGHTS, metadata={"format": "pt"} | (metadata or {})
        )
        _sort_metadata(partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # safetensors closes it to others
        write_text(partial / README, card)
        for name, text in (files or {}).items():
            write_text(partial / name, text)
        _verify(partial, tensors)
    return folder


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be written: {in_one_line(error)}. Make room, or give another folder "
            "(g2l publish RUN --output DIR); nothing of it is left."
        ) from error


def _sort_metadata(file: Path) -> None:
    """Writes a safetensors file's metadata in order, so that the same student has the same hash.

    safetensors writes them in an order of chance.
    """
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # the same items: what is left is padding
        stream.seek(8)
        stream.write(text.ljust(size))


def _check_place(folder: Path) -> None:
    """Raises where a folder would be replaced that was never published."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds other files and no student, and is not replaced. Give a folder that "
            "does not exist yet (g2l publish RUN --output DIR)."
        )


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise UserError(
            f"{len(broken)} of the student's weights are not finite ({', '.join(broken[:3])}): it "
            "diverged. Nothing is published; take an earlier checkpoint of the run."
        )


def _verify(folder: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Checks that plain timm builds the same network from the folder, with the same weights."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict()
    if foreign := sorted(expected.keys() ^ network.keys()):
        raise UserError(
            f"The weights are not those of the student's network: {len(foreign)} are in one and "
            f"not in the other ({', '.join(foreign[:3])}). Nothing is published."
        )
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    if not all(torch.equal(loaded[name], value) for name, value in expected.items()):
        raise RuntimeError("timm reads other weights than were written; nothing is published.")
