"""Loads encoders from the Hub, a local folder, timm or eva's registry, or with random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from loguru import logger
from torch import nn

from g2l_plugin.encoders.encoder import Encoder, Output, Provenance
from g2l_plugin.encoders.float8 import compute_in_float8, require_float8
from g2l_plugin.encoders.folder import load_folder
from g2l_plugin.encoders.hub_errors import explain_hub_errors
from g2l_plugin.encoders.known import KnownEncoder, find_known
from g2l_plugin.encoders.locate import locate_folder, locate_timm_weights, split_revision
from g2l_plugin.encoders.timm_network import create_timm, explain_build_errors
from g2l_plugin.encoders.weights import WEIGHTS, hash_tensors, hashed
from g2l_plugin.errors import UserError

_SCHEMES = "hf-hub:org/name, local-dir:path, timm:name, eva:name, scratch:vitl14 or demo:teacher"
_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,
}
"""Of the weights as they are loaded; see `float8` for what then becomes of those."""


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """An encoder as a config describes it; only `load` reads or downloads anything.

    Attributes:
        source: `hf-hub:org/name[@revision]`, `local-dir:path`, `timm:name`, `eva:name`,
            `scratch:vitl14` or `demo:teacher`; see `load_encoder`.
        revision: Branch, tag or commit on the Hub.
        pretrained: False builds the same network with random weights.
        model_kwargs: Arguments for `timm.create_model` (or eva's backbone); `mlp_layer` is the name
            of a timm layer, e.g. SwiGLUPacked.
        mean: Normalisation mean, RGB; None uses the encoder's own.
        std: Normalisation standard deviation, RGB; None uses the encoder's own.
        output: The output: class token, class token with mean patch token, or patch tokens.
        dtype: Precision of the weights: float32, bfloat16, float16 or float8 (of linear layers, the
            rest in bfloat16; for a frozen encoder on a GPU that has it).
        trust_remote_code: The one repository (`org/name`, or the folder) whose code may run; None
            runs no repository's code.
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
    """Loads an encoder and logs which weights it holds.

    A source is one of these; `g2l models` lists published pathology encoders with their sources:

    - `hf-hub:org/name` or `hf-hub:org/name@revision`: a model on the Hugging Face Hub.
    - `local-dir:path`: a folder with config.json and model.safetensors.
    - `timm:name`: a timm model with the weights that timm publishes.
    - `eva:name`: a backbone of eva's registry.
    - `scratch:vitl14`, `scratch:vitb14` or `scratch:vits14`: a student with random weights.
    - `demo:teacher`: the small teacher that ships with this package.

    Weights are read from safetensors only, and a repository's code runs only if
    `trust_remote_code` names it. The exception is `eva:`, which loads as eva does: some of its
    backbones read pickles or run a repository's code.

    Args:
        source: The encoder's source.
        revision: Branch, tag or commit on the Hub.
        pretrained: False builds the same network with random weights.
        model_kwargs: Arguments for `timm.create_model` (or eva's backbone); `mlp_layer` is the name
            of a timm layer, e.g. SwiGLUPacked.
        mean: Normalisation mean, RGB; None uses the encoder's own.
        std: Normalisation standard deviation, RGB; None uses the encoder's own.
        output: The output: class token, class token with mean patch token, or patch tokens.
        dtype: Precision of the weights: float32, bfloat16, float16 or float8 (of linear layers, the
            rest in bfloat16; for a frozen encoder on a GPU that has it).
        trust_remote_code: The one repository (`org/name`, or the folder) whose code may run; None
            runs no repository's code.

    Returns:
        The encoder, for RGB images in [0, 1].

    Raises:
        UserError: The source is unknown, unreachable, gated or not in safetensors, its weights are
            damaged or do not fit the network, or `dtype` is float8 and there is no torchao or no
            GPU that computes in it.

    Examples:
        >>> import torch
        >>> from g2l_plugin import load_encoder
        >>> encoder = load_encoder("demo:teacher").eval()
        >>> images = torch.rand(4, 3, 56, 56)  # RGB in [0, 1]
        >>> encoder(images).shape
        torch.Size([4, 192])
    """
    source, revision = split_revision(source, revision)
    if dtype not in _PRECISIONS:
        raise UserError(f"Unknown dtype {dtype!r}. Expected {', '.join(_PRECISIONS)}.")
    if dtype == "float8":
        require_float8(source)
    known = find_known(source)
    known_kwargs = {} if known is None or source.startswith("eva:") else known.model_kwargs
    kwargs = dict(known_kwargs) | (model_kwargs or {})
    model, provenance = _load(
        source, revision, known, pretrained, kwargs, _PRECISIONS[dtype], trust_remote_code
    )
    own_mean, own_std = own_normalization(model, source)
    mean, std = mean or own_mean, std or own_std
    if not (_are_channels(mean) and _are_channels(std) and min(std) > 0):
        raise UserError(
            f"The normalisation of {source} is not known: mean {mean}, std {std}. Give `mean` and "
            "`std`, three values each (of `std`, above 0), next to `source`."
        )
    if provenance.license is None and provenance.pretrained:
        license = known.license if known else _pretrained_cfg(model, source).get("license")
        provenance = dataclasses.replace(provenance, license=license)
    encoder = Encoder(model, mean=mean, std=std, provenance=provenance, output=output)
    logger.info(f"Loaded {encoder.describe()}")
    if known and not model_kwargs:
        _warn_if_changed(encoder, known)
    if dtype == "float8":
        compute_in_float8(model)
    return encoder


def own_normalization(
    model: nn.Module, source: str
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Returns the mean and std a network was published with; None if they are not known.

    Args:
        model: The loaded network.
        source: Its source.
    """
    if (known := find_known(source)) is not None:
        return known.mean, known.std
    cfg = _pretrained_cfg(model, source)
    return getattr(model, "normalization", (cfg.get("mean"), cfg.get("std")))


def _are_channels(values: Any) -> TypeGuard[Sequence[float]]:
    """Whether values are one finite number each for red, green and blue."""
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _pretrained_cfg(model: nn.Module, source: str) -> dict[str, Any]:
    """Returns timm's settings for a network; empty if they may not describe its weights."""
    if source.startswith("eva:pathology/"):
        # eva loads other weights into networks that timm has settings for (Lunit's).
        return {}
    # eva's wrappers hold the timm model as `model`.
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
    # Arguments in the table of known encoders are timm's; eva's backbones have others.
    if known and (scheme == "scratch" or not pretrained) and scheme != "eva":
        return create_timm(known.architecture, source, None, dtype, kwargs), random
    if scheme in ("hf-hub", "local-dir", "demo"):
        remote_code = trust_remote_code is not None and trust_remote_code == name
        folder, commit = locate_folder(source, revision, weights=pretrained, code=remote_code)
        weights = hashed(folder / WEIGHTS, source) if pretrained else contextlib.nullcontext()
        with weights as sha256:
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
        file, commit = locate_timm_weights(name, source)
        with hashed(file, source) as sha256:
            model = create_timm(name, source, file, dtype, kwargs)
        return model, Provenance(source, commit, file.name, sha256)
    if scheme == "eva":
        model = _load_from_eva(name, source, pretrained, kwargs)
        return model.to(dtype), Provenance(source, None, None, hash_tensors(model))
    raise UserError(f"Unknown encoder source {source!r}. Expected {_SCHEMES}.")


def _load_from_eva(name: str, source: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    from eva.vision.models import ModelFromRegistry
    from eva.vision.models.networks.backbones import backbone_registry

    if name not in backbone_registry.entries():
        pathology = [key for key in backbone_registry.entries() if key.startswith("pathology/")]
        raise UserError(
            f"eva has no backbone {name!r}. Its pathology backbones: {', '.join(pathology)}."
        )
    if not pretrained:
        raise UserError(f"eva:{name} cannot have random weights; leave `pretrained` true.")
    accepted = inspect.signature(backbone_registry.get(name)).parameters
    if unknown := [key for key in kwargs if key not in accepted]:  # eva would ignore them
        raise UserError(
            f"eva:{name} does not accept {', '.join(unknown)}. Expected `model_kwargs` among "
            f"{', '.join(accepted) or 'none'}."
        )
    with (
        explain_build_errors(source, "eva", "`model_kwargs`, the connection and HF_TOKEN"),
        explain_hub_errors(source),
    ):
        return ModelFromRegistry(name, model_kwargs=kwargs).model


def _warn_if_changed(encoder: Encoder, known: KnownEncoder) -> None:
    """Warns if a known encoder has another number of weights than the table says."""
    parameters = encoder.count_parameters()
    if parameters != known.parameters:
        logger.warning(
            f"{encoder.provenance.source} has {parameters:,} parameters, expected "
            f"{known.parameters:,}: its repository has changed. Check it before you use it."
        )
