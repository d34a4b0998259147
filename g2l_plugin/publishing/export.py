"""From a trained student to a folder that plain timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError
from g2l_plugin.files import new_folder, write_text


def export_student(
    student: Encoder, folder: str | Path, *, card: str, license: str | None = None
) -> Path:
    """Writes model.safetensors, config.json and README.md, and checks that timm reads them back.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the student without this
    package, its mean and std in `pretrained_cfg`.

    Args:
        student: The trained student; its model must be one that timm can build by name.
        folder: The folder to write; one that exists is replaced when the new one is complete.
        card: Text of README.md.
        license: Licence identifier for config.json.

    Returns:
        The folder.

    Raises:
        UserError: The model is none of timm's.
    """
    folder, model = Path(folder), student.model
    if not timm_config(student):
        raise UserError(
            f"A student of type {type(model).__name__} cannot be published: expected a timm model. "
            "Start from a `timm:`, `hf-hub:` or `local-dir:` source."
        )
    with new_folder(folder) as partial:
        save_for_hf(
            model,
            str(partial),
            safe_serialization=True,
            # The tag of the start weights would name weights that these no longer are.
            model_config={
                "pretrained_cfg": {"tag": "g2l"} | ({"license": license} if license else {})
            },
            data_config={
                "input_size": (3, *input_size(student)),
                "mean": normalization(student)[0],
                "std": normalization(student)[1],
                "crop_pct": 1.0,
            },
        )
        (partial / "model.safetensors").chmod(0o644)  # safetensors closes it to others
        write_text(partial / "README.md", card)
        _verify(partial, model)
    return folder


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """Timm's `pretrained_cfg` of an encoder; empty where its model is none of timm's."""
    return getattr(encoder.model, "pretrained_cfg", None) or {}


def input_size(student: Encoder) -> tuple[int, int]:
    """Height and width of the images that a student is made for, in pixels: timm models say so."""
    assert student.input_size is not None
    return student.input_size


def normalization(encoder: Encoder) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of an encoder, as the decimals that its float32 buffers hold."""
    mean, std = (
        [float(str(value)) for value in buffer.flatten().cpu().numpy()]
        for buffer in (encoder.mean, encoder.std)
    )
    return mean, std


def _verify(folder: Path, model: torch.nn.Module) -> None:
    """Checks that timm builds the same network from the folder, with the same weights."""
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    expected = model.state_dict()
    if not (saved.keys() == loaded.keys() == expected.keys()) or not all(
        torch.equal(loaded[key], value.cpu()) for key, value in expected.items()
    ):
        raise RuntimeError(
            f"timm does not rebuild the student from {folder}; nothing is published."
        )
