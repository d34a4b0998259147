"""Published folders: config.json and model.safetensors, read and written as timm loads them."""

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
from timm.models import is_model_in_modules
from torch import nn

from g2l_plugin.encoders import transformers_layout
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.timm_network import create_timm, explain_build_errors, timm_config
from g2l_plugin.encoders.transformers_network import load_transformers
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import new_folder, write_text

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
README = "README.md"
RESULTS = "results.json"
TRAINING_CONFIG = "config.yaml"
ONNX = "model.onnx"
PATIENTS = "patients.txt"
"""File that lists the patients whom a student was distilled on, hashed, one a line."""

_VIT_MODULES = ("vision_transformer", "deit", "eva")


def load_folder(
    folder: Path,
    source: str,
    *,
    pretrained: bool = True,
    model_kwargs: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    remote_code: bool = False,
) -> nn.Module:
    """Builds the network of a folder.

    A ViT or DINOv2 saved by transformers is loaded into timm's architecture. Networks that timm
    lacks are built by the transformers library, or by the folder's own code if that is allowed.

    Args:
        folder: The folder.
        source: Its source, for errors.
        pretrained: False gives random weights.
        model_kwargs: Arguments for `timm.create_model` beyond those in config.json.
        dtype: Precision of the weights.
        remote_code: Whether Python code in the folder may run.

    Returns:
        The network. Its `training_patients` are those that `read_patients` finds; None for random
        weights.

    Raises:
        UserError: No model can be built from the folder, or its weights do not fit its config.json.
    """
    network = _build(folder, source, pretrained, model_kwargs, dtype, remote_code)
    patients = read_patients(folder) if pretrained else None
    network.training_patients = patients  # type: ignore[assignment]
    return network


def _build(
    folder: Path,
    source: str,
    pretrained: bool,
    model_kwargs: dict[str, Any],
    dtype: torch.dtype,
    remote_code: bool,
) -> nn.Module:
    config = _read_json(folder / CONFIG, source)
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(name, {}), dict):
            raise UserError(
                f"{source}: `{name}` in its {CONFIG} is {config[name]!r}. Expected settings by "
                "name, as timm writes them. Download the folder again."
            )
    file = folder / WEIGHTS if pretrained else None
    if "architecture" in config:
        if config.get("model_args", {}).get("global_pool") == "":
            # Published to give all tokens, e.g. Virchow2; an encoder gives the class token.
            model_kwargs = {"global_pool": "token"} | model_kwargs
        network: Any = create_timm(f"local-dir:{folder}", source, file, dtype, model_kwargs)
        # timm fills in ImageNet's values if config.json has none.
        stated = config.get("pretrained_cfg", config)
        for name in {"mean", "std"} - stated.keys():
            network.pretrained_cfg.pop(name, None)
        return network
    normalization = _read_normalization(folder, source)
    if transformers_layout.is_translatable(config) and not remote_code:
        with explain_build_errors(source):
            return transformers_layout.build_in_timm(
                config, file, source, normalization, dtype, model_kwargs
            )
    if "model_type" not in config:
        raise UserError(
            f"{source}: its config.json is neither timm's (no `architecture`) nor transformers' "
            "(no `model_type`). Expected a model published for one of these libraries."
        )
    if model_kwargs:
        raise UserError(
            f"{source} is a transformers network that timm does not have, and accepts no "
            f"`model_kwargs`; given {', '.join(model_kwargs)}. Leave them out."
        )
    network = load_transformers(
        folder, source, config, pretrained=pretrained, dtype=dtype, remote_code=remote_code
    )
    network.normalization = normalization
    return network


def is_vision_transformer(folder: Path, source: str) -> bool:
    """Whether a folder's model is a timm vision transformer, or is loaded as one.

    Args:
        folder: The folder.
        source: Its source, for errors.
    """
    config = _read_json(folder / CONFIG, source)
    if "architecture" in config:
        return is_model_in_modules(config["architecture"], _VIT_MODULES)
    return transformers_layout.is_translatable(config)


def read_patients(folder: Path) -> list[str] | None:
    """Reads the lines of a folder's patients.txt; None if it has none."""
    file = folder / PATIENTS
    if not file.is_file():
        return None
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def export_student(
    student: Encoder, folder: str | Path, *, card: str, license: str | None = None
) -> Path:
    """Writes an encoder as a folder that timm loads without this package.

    Args:
        student: The encoder; timm must be able to build its model by name.
        folder: The folder to write. An earlier export is replaced once the new one is complete.
        card: Text of README.md.
        license: Licence identifier for config.json.

    Returns:
        The folder.

    Raises:
        UserError: timm cannot build the model, its weights are not finite, or the folder cannot be
            written or holds other files.

    Examples:
        >>> import timm
        >>> from g2l_plugin import export_student, load_encoder
        >>> folder = export_student(load_encoder("demo:teacher"), "student", card="# My student")
        >>> sorted(file.name for file in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> timm.create_model("local-dir:student", pretrained=True).num_features
        192
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

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then builds the network without this
    package, with mean and std in its `pretrained_cfg`.

    Args:
        folder: The folder. An earlier export is replaced once the new one is complete.
        state: The network's state dict.
        config: The network's config.json, as `timm_config` returns it.
        card: Text of README.md.
        license: Licence identifier for config.json.
        metadata: Notes on the weights, for config.json (`g2l`).
        files: Text of further files, by file name.

    Returns:
        The folder.

    Raises:
        UserError: The weights do not fit the network or are not finite, or the folder cannot be
            written or holds other files. Nothing is left behind.
    """
    folder = folder.expanduser()
    check_replaceable(folder)
    _check_finite(state)
    if license:
        config = config | {"pretrained_cfg": config["pretrained_cfg"] | {"license": license}}
    if metadata:
        config = config | {"g2l": metadata}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with _explain_write_errors(folder), new_folder(folder) as partial:
        write_text(partial / CONFIG, json.dumps(config, indent=2) + "\n")
        # safetensors writes several metadata keys in random order, which would change the hash.
        # transformers 4 requires this one.
        safetensors.torch.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / WEIGHTS).chmod(0o644)  # safetensors lets only the owner read it
        write_text(partial / README, card)
        for name, text in (files or {}).items():
            write_text(partial / name, text)
        _check_timm_loads(partial, tensors)
    return folder


def _read_json(file: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{source}: {file} is not valid JSON: {error}. Download the folder again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: {file} holds no JSON object. Download the folder again.")
    return content


def _read_normalization(folder: Path, source: str) -> tuple[list[float] | None, list[float] | None]:
    """Reads a transformers model's mean and std; None if its folder does not state them."""
    file = folder / PREPROCESSOR
    settings = _read_json(file, source) if file.is_file() else {}
    if settings.get("do_normalize", True) is False:
        raise UserError(
            f"{source} expects images that are not normalised ({PREPROCESSOR}: do_normalize "
            "false). Set `mean: [0, 0, 0]` and `std: [1, 1, 1]` next to `source`, and remove that "
            "line."
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3:
        raise UserError(
            f"{source} expects images scaled by {factor:g} ({PREPROCESSOR}: rescale_factor). "
            "Only 1/255 is supported, which gives images in [0, 1]."
        )
    return settings.get("image_mean"), settings.get("image_std")


@contextlib.contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be written: {in_one_line(error)}. Make room, or choose another "
            "folder (g2l publish RUN --output DIR); nothing was left behind."
        ) from error


def check_replaceable(folder: Path) -> None:
    """Raises a `UserError` if a folder holds files but no published model."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds other files and no student, and is not replaced. Choose a folder that "
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
            f"{len(broken)} of the student's weights are not finite ({', '.join(broken[:3])}): "
            "training diverged. Nothing is published; choose an earlier checkpoint of the run."
        )


def _check_timm_loads(folder: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Checks that timm alone builds the network from the folder, with the same weights."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict()
    if differing := sorted(expected.keys() ^ network.keys()):
        raise UserError(
            f"The weights are not those of the student's network: {len(differing)} are in only "
            f"one of the two ({', '.join(differing[:3])}). Nothing is published."
        )
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    if not all(torch.equal(loaded[name], value) for name, value in expected.items()):
        raise RuntimeError("timm reads weights that differ from those written; nothing published.")
