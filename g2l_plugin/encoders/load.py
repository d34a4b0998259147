"""Loading encoders: from the Hub, a local folder, timm, or eva's registry."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import timm.layers
from loguru import logger
from safetensors import SafetensorError
from timm.models import is_model_in_modules
from torch import nn

from g2l_plugin.encoders import hibou
from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.encoders.hub import download_model, explained
from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.errors import UserError

_SCHEMES = "hf-hub:org/name, local-dir:path, timm:name, eva:name or demo:teacher"
WEIGHTS = "model.safetensors"
"""The only file that weights are read from."""

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_MAX_SAID = 200
"""Characters of a library's own message that fit into one line of ours."""
_VIT_MODULES = ("vision_transformer", "deit", "eva")


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Where an encoder is from, as a config says it; nothing is loaded before `load`.

    Attributes:
        source: `hf-hub:org/name[@revision]`, `local-dir:path`, `timm:name`, `eva:name` of eva's
            registry, or `demo:teacher`, the one that this package ships.
        revision: Branch, tag or commit on the Hub.
        pretrained: False builds the same network with random weights.
        model_kwargs: Arguments for `timm.create_model` (or eva's backbone); `mlp_layer` is the name
            of one of timm's layers, e.g. SwiGLUPacked.
        mean: Normalisation mean, RGB; None takes the encoder's own.
        std: Normalisation standard deviation, RGB; None takes the encoder's own.
    """

    source: str
    revision: str | None = None
    pretrained: bool = True
    model_kwargs: dict[str, Any] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def load(self) -> Encoder:
        """Loads the encoder; see `load_encoder`."""
        return load_encoder(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def load_encoder(
    source: str,
    revision: str | None = None,
    *,
    pretrained: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Encoder:
    """Loads an encoder and logs which weights it holds.

    Weights are read from safetensors only, and no code of a repository is run. Only `eva:` sources
    are loaded as eva loads them, which for some of its backbones means neither.

    Args:
        source: See `EncoderSource`.
        revision: Branch, tag or commit on the Hub.
        pretrained: False builds the same network with random weights.
        model_kwargs: Arguments for `timm.create_model` (or eva's backbone).
        mean: Normalisation mean, RGB; None takes the encoder's own.
        std: Normalisation standard deviation, RGB; None takes the encoder's own.

    Raises:
        UserError: The source is unknown, out of reach, gated, or not in safetensors.
    """
    source, revision = _split_revision(source, revision)
    known = KNOWN_ENCODERS.get(source)
    kwargs = dict(known.model_kwargs if known else {}) | (model_kwargs or {})
    scheme, _, name = source.partition(":")
    provenance = Provenance(
        source=source, license=known.license if known else None, pretrained=pretrained
    )
    if scheme in ("hf-hub", "local-dir", "demo"):
        folder, commit = locate_folder(source, revision, weights=pretrained)
        provenance = dataclasses.replace(provenance, revision=commit)
        model = load_folder(folder, source, pretrained=pretrained, model_kwargs=kwargs)
        if pretrained:
            provenance = dataclasses.replace(
                provenance, file=WEIGHTS, sha256=sha256_of(folder / WEIGHTS)
            )
    elif scheme == "timm":
        if pretrained:
            file, commit = _download_timm_weights(name, source)
            provenance = dataclasses.replace(
                provenance, revision=commit, file=file.name, sha256=sha256_of(file)
            )
            kwargs |= {"pretrained_cfg_overlay": {"file": str(file)}}
        model = _create(name, source, pretrained=pretrained, **kwargs)
    elif scheme == "eva":
        model = _load_from_eva(name, source, pretrained, kwargs)
    else:
        raise UserError(f"Unknown encoder source {source!r}. Expected {_SCHEMES}.")

    # eva's wrappers hold timm's model inside.
    owner = model if hasattr(model, "pretrained_cfg") else getattr(model, "model", None)
    cfg = getattr(owner, "pretrained_cfg", None) or {}
    mean = mean or (known.mean if known else cfg.get("mean"))
    std = std or (known.std if known else cfg.get("std"))
    if not mean or not std or not len(mean) == len(std) == 3:
        raise UserError(
            f"The normalisation of {source} is not known: mean {mean}, std {std}. Give its "
            "`mean` and `std`, three values each, beside `source`."
        )
    if provenance.license is None and pretrained:
        provenance = dataclasses.replace(provenance, license=cfg.get("license"))
    encoder = Encoder(model, mean=mean, std=std, provenance=provenance)
    logger.info(f"Loaded {encoder.describe()}")
    return encoder


def locate_folder(
    source: str, revision: str | None = None, *, weights: bool = True
) -> tuple[Path, str | None]:
    """Finds the folder of a published model, downloading it from the Hub where needed.

    Args:
        source: `hf-hub:`, `local-dir:` or `demo:` source.
        revision: Branch, tag or commit on the Hub.
        weights: Whether the weights are wanted too, and not the config alone.

    Returns:
        The folder, and the commit on the Hub (None elsewhere).

    Raises:
        UserError: There is no such folder or repository, or it has no safetensors weights.
    """
    source, revision = _split_revision(source, revision)
    scheme, _, name = source.partition(":")
    files = [_CONFIG, WEIGHTS] if weights else [_CONFIG]
    if scheme == "hf-hub":
        return download_model(name, revision, files, optional=[_PREPROCESSOR])
    if scheme == "demo":
        folder = Path(str(importlib.resources.files("g2l_plugin.demo"))) / name
    elif scheme == "local-dir":
        folder = Path(name).expanduser()
    else:
        raise UserError(
            f"{source!r} is no published model. Expected hf-hub:org/name or local-dir:path."
        )
    for file in files:
        if not (folder / file).is_file():
            raise UserError(
                f"{source}: there is no {folder / file}. Expected a folder with "
                f"{' and '.join(files)}, as timm's save_for_hf(safe_serialization=True) writes it."
            )
    return folder, None


def load_folder(
    folder: Path, source: str, *, pretrained: bool = True, model_kwargs: dict[str, Any]
) -> nn.Module:
    """Builds the timm model of a folder with config.json and model.safetensors.

    Args:
        folder: The folder.
        source: Its source, for errors.
        pretrained: False gives random weights.
        model_kwargs: Arguments for `timm.create_model` beyond those of config.json.
    """
    config = _read_json(folder / _CONFIG, source)
    if hibou.is_transformers_layout(config):
        return _load_transformers_layout(folder, source, config, pretrained, model_kwargs)
    if "architecture" not in config:
        raise UserError(
            f"{source}: its config.json is none of timm's (no `architecture`). Expected a model "
            "published for timm, or a DINOv2 with registers and SwiGLU published for transformers."
        )
    if config.get("model_args", {}).get("global_pool") == "":
        # Published to give all tokens, e.g. Virchow2; an encoder gives the class token.
        model_kwargs = {"global_pool": "token"} | model_kwargs
    return _create(f"local-dir:{folder}", source, pretrained=pretrained, **model_kwargs)


def is_vision_transformer(folder: Path, source: str) -> bool:
    """Whether the model of a folder is one of timm's vision transformers.

    Args:
        folder: The folder.
        source: Its source, for errors.
    """
    architecture = _read_json(folder / _CONFIG, source).get("architecture")
    return architecture is None or is_model_in_modules(architecture, _VIT_MODULES)


def _load_transformers_layout(
    folder: Path,
    source: str,
    config: dict[str, Any],
    pretrained: bool,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    """Builds timm's architecture for a model of transformers; see `hibou`."""
    kwargs = hibou.timm_model_args(config) | model_kwargs
    known = KNOWN_ENCODERS.get(source)
    preprocessor = (
        _read_json(folder / _PREPROCESSOR, source) if (folder / _PREPROCESSOR).is_file() else {}
    )
    # timm's own settings of this architecture are those of another model.
    cfg = {
        "input_size": (3, kwargs["img_size"], kwargs["img_size"]),
        "mean": known.mean if known else preprocessor.get("image_mean"),
        "std": known.std if known else preprocessor.get("image_std"),
        "license": known.license if known else None,
    }
    model = _create(
        hibou.ARCHITECTURE, source, pretrained=False, pretrained_cfg_overlay=cfg, **kwargs
    )
    if pretrained:
        features_only = kwargs.get("features_only", False)
        network: Any = model.model if features_only else model
        with _told(source):
            state = hibou.timm_state_dict(
                safetensors.torch.load_file(folder / WEIGHTS), network.patch_embed.grid_size
            )
            if features_only:  # timm has cut off what comes after the last map
                state = {key: state[key] for key in network.state_dict()}
            network.load_state_dict(state)
    return model


def _create(name: str, source: str, **kwargs: Any) -> nn.Module:
    if isinstance(layer := kwargs.get("mlp_layer"), str):  # a config can only name it
        if not callable(getattr(timm.layers, layer, None)):
            raise UserError(
                f"{source}: timm has no layer {layer!r} for `mlp_layer`. Expected a name of "
                "timm.layers, e.g. Mlp or SwiGLUPacked."
            )
        kwargs["mlp_layer"] = getattr(timm.layers, layer)
    with _told(source):
        return timm.create_model(name, **({"num_classes": 0} | kwargs))


@contextlib.contextmanager
def _told(
    source: str,
    library: str = "timm",
    advice: str = "`model_kwargs`, and that the weights are complete and belong to its config.json",
) -> Iterator[None]:
    """Turns what a library says about wrong arguments or weights into one line."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        if len(said) > _MAX_SAID:
            said = f"{said[:_MAX_SAID]} …"
        raise UserError(
            f"{library} cannot build {source}: {type(error).__name__}: {said}. Check {advice}."
        ) from error


def _read_json(file: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source}: {file} is no JSON: {error}. Fetch the folder anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: {file} holds no JSON object. Fetch the folder anew.")
    return content


def _download_timm_weights(name: str, source: str) -> tuple[Path, str]:
    """The safetensors file of a timm model's own weights, and its commit on the Hub."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        raise UserError(
            f"timm has no weights on the Hub for {name!r}. Check the name with "
            "timm.list_pretrained(), or set `pretrained: false` for random weights."
        )
    folder, commit = download_model(cfg.hf_hub_id, None, [WEIGHTS])
    return folder / WEIGHTS, commit


def _load_from_eva(name: str, source: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    from eva.vision.models import ModelFromRegistry
    from eva.vision.models.networks.backbones import backbone_registry

    if name not in backbone_registry.entries():
        pathology = [key for key in backbone_registry.entries() if key.startswith("pathology/")]
        raise UserError(
            f"eva has no backbone {name!r}. Its pathology backbones: {', '.join(pathology)}."
        )
    if not pretrained:
        raise UserError(f"eva:{name} has only its own weights; leave `pretrained` true.")
    with _told(source, "eva", "`model_kwargs`, the connection and HF_TOKEN"), explained(source):
        return ModelFromRegistry(name, model_kwargs=kwargs).model


def _split_revision(source: str, revision: str | None) -> tuple[str, str | None]:
    if not source.startswith("hf-hub:") or "@" not in source:
        return source, revision
    source, _, inline = source.partition("@")
    if revision not in (None, inline):
        raise UserError(f"{source} is asked for at two revisions, {inline} and {revision}.")
    return source, inline


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
