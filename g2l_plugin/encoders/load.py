"""Loading encoders: from the Hub, a local folder, timm, eva's registry, or from scratch."""

from __future__ import annotations

import dataclasses
import importlib.resources
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from loguru import logger
from torch import nn

from g2l_plugin.encoders.encoder import Encoder, Output, Provenance
from g2l_plugin.encoders.folder import create_timm, load_folder, told
from g2l_plugin.encoders.hub import CONFIG, download_model, explained
from g2l_plugin.encoders.known import KnownEncoder, find_known
from g2l_plugin.encoders.weights import WEIGHTS, hash_checked, hash_tensors
from g2l_plugin.errors import UserError

_SCHEMES = "hf-hub:org/name, local-dir:path, timm:name, eva:name, scratch:vitl14 or demo:teacher"
_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Where an encoder is from, as a config says it; nothing is loaded before `load`.

    Attributes:
        source: `hf-hub:org/name[@revision]`, `local-dir:path`, `timm:name`, `eva:name` of eva's
            registry, `scratch:name` of a student's network with random weights, or `demo:teacher`,
            the one that this package ships.
        revision: Branch, tag or commit on the Hub.
        pretrained: False builds the same network with random weights.
        model_kwargs: Arguments for `timm.create_model` (or eva's backbone); `mlp_layer` is the name
            of one of timm's layers, e.g. SwiGLUPacked.
        mean: Normalisation mean, RGB; None takes the encoder's own.
        std: Normalisation standard deviation, RGB; None takes the encoder's own.
        output: What it gives: the class token, that and the mean patch token, or patch tokens.
        dtype: Precision that the weights are held in: float32, bfloat16 or float16.
        trust_remote_code: Name of the one repository (`org/name`, or the folder) whose own code may
            run; None runs nobody's.
    """

    source: str
    revision: str | None = None
    pretrained: bool = True
    model_kwargs: dict[str, Any] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    output: Output = "class_token"
    dtype: str = "float32"
    trust_remote_code: str | None = None

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
    output: Output = "class_token",
    dtype: str = "float32",
    trust_remote_code: str | None = None,
) -> Encoder:
    """Loads an encoder and logs which weights it holds; the arguments are `EncoderSource`'s.

    Weights are read from safetensors only, and no code of a repository is run unless it is named.
    Only `eva:` sources are loaded as eva loads them, which for some of its backbones means neither.

    Raises:
        UserError: The source is unknown, out of reach, gated, not in safetensors, or its weights
            are damaged or of another network.
    """
    source, revision = split_revision(source, revision)
    if dtype not in _PRECISIONS:
        raise UserError(f"Unknown dtype {dtype!r}. Expected {', '.join(_PRECISIONS)}.")
    known = find_known(source)
    own = {} if known is None or source.startswith("eva:") else known.model_kwargs
    kwargs = dict(own) | (model_kwargs or {})
    model, provenance = _load(
        source, revision, known, pretrained, kwargs, _PRECISIONS[dtype], trust_remote_code
    )
    own_mean, own_std = own_normalization(model, source)
    mean, std = mean or own_mean, std or own_std
    if not mean or not std or not len(mean) == len(std) == 3:
        raise UserError(
            f"The normalisation of {source} is not known: mean {mean}, std {std}. Give its "
            "`mean` and `std`, three values each, beside `source`."
        )
    if provenance.license is None and provenance.pretrained:
        license = known.license if known else _settings(model, source).get("license")
        provenance = dataclasses.replace(provenance, license=license)
    encoder = Encoder(model, mean=mean, std=std, provenance=provenance, output=output)
    logger.info(f"Loaded {encoder.describe()}")
    if known and not model_kwargs:
        _compare(encoder, known)
    return encoder


def locate_folder(
    source: str, revision: str | None = None, *, weights: bool = True, code: bool = False
) -> tuple[Path, str | None]:
    """Finds the folder of a published model, downloading it from the Hub where needed.

    Args:
        source: `hf-hub:`, `local-dir:` or `demo:` source, without a revision.
        revision: Branch, tag or commit on the Hub.
        weights: Whether the weights are wanted too, and not the config alone.
        code: Whether the repository's own Python files are wanted too.

    Returns:
        The folder, and the commit on the Hub (None elsewhere).

    Raises:
        UserError: There is no such folder or repository, or it has no safetensors weights.
    """
    scheme, _, name = source.partition(":")
    if scheme == "hf-hub":
        return download_model(name, revision, weights=weights, code=code)
    if scheme == "demo":
        folder = Path(str(importlib.resources.files("g2l_plugin.demo"))) / name
    elif scheme == "local-dir":
        folder = Path(name).expanduser()
    else:
        raise UserError(
            f"{source!r} is no published model. Expected hf-hub:org/name or local-dir:path."
        )
    files = [CONFIG, WEIGHTS] if weights else [CONFIG]
    for file in files:
        if not (folder / file).is_file():
            raise UserError(
                f"{source}: there is no {folder / file}. Expected a folder with "
                f"{' and '.join(files)}, as timm's save_for_hf(safe_serialization=True) writes it."
            )
    return folder, None


def split_revision(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Parts `hf-hub:org/name@revision`; raises a UserError where another one is given beside it."""
    if not source.startswith("hf-hub:") or "@" not in source:
        return source, revision
    source, _, inline = source.partition("@")
    if revision not in (None, inline):
        raise UserError(f"{source} is asked for at two revisions, {inline} and {revision}.")
    return source, inline


def own_normalization(
    model: nn.Module, source: str
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and std of a loaded network; None where neither it nor the table of known ones says.

    Args:
        model: The network.
        source: Its source.
    """
    if (known := find_known(source)) is not None:
        return known.mean, known.std
    settings = _settings(model, source)
    return getattr(model, "normalization", (settings.get("mean"), settings.get("std")))


def _settings(model: nn.Module, source: str) -> dict[str, Any]:
    """Timm's settings of a network, where they are those of its weights."""
    if source.startswith("eva:pathology/"):
        # Weights from elsewhere in a network that timm knows with other settings (Lunit's).
        return {}
    # eva's wrappers hold timm's model inside.
    owner = model if hasattr(model, "pretrained_cfg") else getattr(model, "model", None)
    return getattr(owner, "pretrained_cfg", None) or {}


def _load(
    source: str,
    revision: str | None,
    known: KnownEncoder | None,
    pretrained: bool,
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    trust_remote_code: str | None,
) -> tuple[nn.Module, Provenance]:
    scheme, _, name = source.partition(":")
    if revision is not None and scheme != "hf-hub":
        raise UserError(
            f"{source} has no revisions (`revision: {revision}`). Only hf-hub:org/name has."
        )
    random = Provenance(source, pretrained=False)
    if scheme == "scratch" and known is None:
        raise UserError(f"Unknown network {source}. Expected one that `g2l models` lists.")
    # The table's arguments are not those of eva's backbones.
    if known and (scheme == "scratch" or not pretrained) and scheme != "eva":
        return create_timm(known.architecture, source, None, dtype, kwargs), random
    if scheme in ("hf-hub", "local-dir", "demo"):
        remote_code = trust_remote_code is not None and trust_remote_code == name
        folder, commit = locate_folder(source, revision, weights=pretrained, code=remote_code)
        sha256 = hash_checked(folder / WEIGHTS, source) if pretrained else None
        model = load_folder(
            folder,
            source,
            pretrained=pretrained,
            model_kwargs=kwargs,
            dtype=dtype,
            remote_code=remote_code,
        )
        return model, Provenance(source, commit, WEIGHTS, sha256) if pretrained else random
    if scheme == "timm":
        if not pretrained:
            return create_timm(name, source, None, dtype, kwargs), random
        file, commit = _download_timm_weights(name, source)
        sha256 = hash_checked(file, source)
        model = create_timm(name, source, file, dtype, kwargs)
        return model, Provenance(source, commit, file.name, sha256)
    if scheme == "eva":
        model = _load_from_eva(name, source, pretrained, kwargs)
        return model.to(dtype), Provenance(source, None, None, hash_tensors(model))
    raise UserError(f"Unknown encoder source {source!r}. Expected {_SCHEMES}.")


def _download_timm_weights(name: str, source: str) -> tuple[Path, str]:
    """The safetensors file of a timm model's own weights, and its commit on the Hub."""
    with told(source):
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        raise UserError(
            f"timm has no weights on the Hub for {name!r}. Check the name with "
            "timm.list_pretrained(), or set `pretrained: false` for random weights."
        )
    folder, commit = download_model(cfg.hf_hub_id, None, config=False)
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
    taken = inspect.signature(backbone_registry.get(name)).parameters
    if foreign := [key for key in kwargs if key not in taken]:  # eva would leave them out
        raise UserError(
            f"eva:{name} takes no {', '.join(foreign)}. Expected `model_kwargs` among "
            f"{', '.join(taken) or 'none'}."
        )
    with told(source, "eva", "`model_kwargs`, the connection and HF_TOKEN"), explained(source):
        return ModelFromRegistry(name, model_kwargs=kwargs).model


def _compare(encoder: Encoder, known: KnownEncoder) -> None:
    """Warns where a known encoder is not what it is known as."""
    parameters = encoder.count_parameters()
    if parameters != known.parameters:
        logger.warning(
            f"{encoder.provenance.source} has {parameters:,} parameters, and not the "
            f"{known.parameters:,} that it is known with: its repository has changed. Check what "
            "it is before you rely on it."
        )
