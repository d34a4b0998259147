"""Loads vision transformers saved by the transformers library into timm's architecture.

Many pathology encoders are published for transformers (Hibou, Phikon, Midnight), some with custom
code. timm has the same networks with other weight names. Loaded into timm, they run without custom
code, and a student that starts from one is published as a plain timm model.
"""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from g2l_plugin.encoders.weights import build_network
from g2l_plugin.errors import UserError

LAYER_NORM_EPS = 1e-6
"""The layer norm's epsilon in timm's vision transformers; a ViT in transformers has 1e-12."""

_FAMILIES = ("dinov2", "dinov2_with_registers", "vit")
_IMG_SIZE = 224

_RENAMES = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.norm([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:weights_in|fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:weights_out|fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)

_QKV = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")
_POSITION = "embeddings.position_embeddings"
_CLASS_TOKEN = "embeddings.cls_token"
# Used for masked training and as a classifier's input; the tokens do not depend on them.
_UNUSED = re.compile(r"embeddings\.mask_token$|pooler\.")


def build_in_timm(
    config: dict[str, Any],
    file: Path | None,
    source: str,
    normalization: tuple[list[float] | None, list[float] | None],
    dtype: torch.dtype,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    """Builds a model published for transformers in timm's architecture.

    Args:
        config: Its parsed config.json, for which `is_translatable` is true.
        file: Its safetensors file; None gives random weights.
        source: Its source, for errors.
        normalization: Its mean and std; None if unknown.
        dtype: Precision of the weights.
        model_kwargs: Further arguments for `timm.create_model`.

    Raises:
        UserError: The file holds another network's weights.
    """
    config = complete(config)
    architecture = timm_architecture(config)
    kwargs = {"num_classes": 0} | timm_model_args(config) | model_kwargs
    size = kwargs["img_size"]
    mean, std = normalization
    # timm's settings for this architecture describe another model.
    cfg = {
        "input_size": (3, *((size, size) if isinstance(size, int) else size)),
        "mean": mean,
        "std": std,
        "license": None,
    }

    if kwargs.get("dynamic_img_size"):  # the weights' own grid, which is resampled once
        kwargs["img_size"] = config["image_size"]

    def build() -> nn.Module:
        network: Any = timm.create_model(architecture, pretrained_cfg_overlay=cfg, **kwargs)
        if kwargs.get("dynamic_img_size"):
            inner = network.model if kwargs.get("features_only") else network
            inner.antialias = _antialias(config)
            inner._pos_embed = types.MethodType(_embed_positions, inner)
            network.unpublishable = (
                "it resamples its position embeddings as transformers does; leave out "
                "`dynamic_img_size` of its `model_kwargs`"
            )
        eps = config.get("layer_norm_eps", LAYER_NORM_EPS)
        if eps != LAYER_NORM_EPS:
            for module in network.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = eps
            # A timm config.json cannot state it, so `timm_config` refuses to publish the network.
            network.unpublishable = (
                f"its layer norm's epsilon is {eps:g}, which timm's config cannot hold"
            )
        return network

    def convert(state: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
        inner: Any = network.model if kwargs.get("features_only") else network
        state = timm_state_dict(state, config, inner.patch_embed.grid_size, source)
        if inner is network:
            return state
        # timm has dropped the layers after the last map.
        state = {f"model.{name}": value for name, value in state.items()}
        return {name: state[name] for name in network.state_dict()}

    if file is None:
        return build().to(dtype)
    return build_network(build, file, source, convert, dtype)


def is_translatable(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a vision transformer that timm also has.

    These are ViT and DINOv2, with or without registers, with an MLP or SwiGLU.
    """
    # Hibou's model_type is that of its custom code; its settings identify it.
    family = config.get("model_type") in _FAMILIES or {
        "num_register_tokens",
        "use_swiglu_ffn",
    } <= set(config)
    return (
        family
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("num_channels", 3) == 3
        and config.get("qkv_bias", True)
    )


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """Adds the defaults of its model type to a config.json."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        return config
    return transformers.CONFIG_MAPPING[kind](**config).to_dict() | config


def timm_architecture(config: dict[str, Any]) -> str:
    """Names the timm architecture that `timm_model_args` configures to match a config.json."""
    if config.get("use_swiglu_ffn"):
        return "vit_giant_patch14_reg4_dinov2"
    size = {384: "small", 768: "base"}.get(config["hidden_size"], "large")
    return f"vit_{size}_patch14_reg4_dinov2"


def timm_model_args(config: dict[str, Any]) -> dict[str, Any]:
    """Translates a transformers config.json into arguments for timm's architecture.

    Args:
        config: The parsed config.json.

    Returns:
        Arguments for `timm.create_model(timm_architecture(config), ...)`.
    """
    dim = config["hidden_size"]
    if config.get("use_swiglu_ffn"):
        # transformers shrinks a SwiGLU's width by 2/3 and rounds it up to a multiple of 8; timm
        # counts gate and value together.
        width = (int(int(dim * config.get("mlp_ratio", 4)) * 2 / 3) + 7) // 8 * 8
        mlp_ratio = 2 * width / dim
    elif "intermediate_size" in config:
        mlp_ratio = config["intermediate_size"] / dim
    else:
        mlp_ratio = config.get("mlp_ratio", 4)
    return {
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": mlp_ratio,
        "patch_size": config["patch_size"],
        "reg_tokens": config.get("num_register_tokens", 0),
        "init_values": 0 if config.get("model_type") == "vit" else 1e-5,  # timm skips None
        # DINOv2 accepts any size, so the usual tile size is set; a ViT accepts only its own.
        "img_size": config["image_size"] if config.get("model_type") == "vit" else _IMG_SIZE,
    }


def timm_state_dict(
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    grid_size: tuple[int, int],
    source: str,
) -> dict[str, torch.Tensor]:
    """Renames transformers' weights to timm's.

    Args:
        weights: State dict as transformers saves it. It is emptied: memory holds one copy.
        config: The parsed config.json.
        grid_size: Rows and columns of patches in timm's network, its `patch_embed.grid_size`.
        source: The source of the weights, for errors.

    Returns:
        State dict of timm's network. If the checkpoint has another grid of patches, its position
        embeddings are resampled as in transformers. Weights that timm does not know are kept.

    Raises:
        UserError: The weights have no position embeddings or no class token.
    """
    # The network may be part of a larger one, e.g. a classifier.
    position_name = next((name for name in weights if name.endswith(_POSITION)), "")
    prefix = position_name.removesuffix(_POSITION)
    if not position_name or prefix + _CLASS_TOKEN not in weights:
        raise UserError(
            f"The weights of {source} have no {_POSITION} or no {_CLASS_TOKEN}. Expected a ViT or "
            "DINOv2 saved by transformers."
        )
    state: dict[str, torch.Tensor] = {}
    qkv: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    class_token, position = weights.pop(prefix + _CLASS_TOKEN), weights.pop(position_name)
    for full_name in list(weights):
        value = weights.pop(full_name)
        name = full_name.removeprefix(prefix)
        if match := _QKV.match(name):
            qkv.setdefault((match[1], match[3]), {})[match[2]] = value
        elif not _UNUSED.match(name) and name not in (_POSITION, _CLASS_TOKEN):
            state[_rename(name)] = value
    for layer, kind in list(qkv):
        parts = qkv.pop((layer, kind))
        if len(parts) == 3:
            state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(
                [parts[name] for name in ("query", "key", "value")]
            )
    # In this architecture, timm adds no position embedding to the class token; transformers does.
    state["cls_token"] = class_token + position[:, :1]
    state["pos_embed"] = _resample(position[:, 1:], grid_size, antialias=_antialias(config))
    return state


def _antialias(config: dict[str, Any]) -> bool:
    """Whether transformers smooths position embeddings before it resamples them."""
    return bool(config.get("num_register_tokens"))


def _embed_positions(network: Any, patches: torch.Tensor) -> torch.Tensor:
    """Takes the place of timm's `_pos_embed`, for images of any size.

    timm resamples in its own way, which gives other tokens.

    Args:
        network: The vision transformer.
        patches: Embedded patches, (B, H, W, D).

    Returns:
        All tokens with their positions, (B, prefix + H W, D).
    """
    position = _resample(network.pos_embed, patches.shape[1:3], network.antialias)  # (1, H W, D)
    prefix = [
        token.expand(len(patches), -1, -1)
        for token in (network.cls_token, network.reg_token)
        if token is not None
    ]
    return network.pos_drop(torch.cat([*prefix, patches.flatten(1, 2) + position], dim=1))


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _resample(position: torch.Tensor, grid_size: Sequence[int], antialias: bool) -> torch.Tensor:
    """Resamples position embeddings (1, N, D) to another grid of patches."""
    side = round(position.shape[1] ** 0.5)
    if (side, side) == tuple(grid_size):
        return position
    maps = position.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(
        maps, tuple(grid_size), mode="bicubic", align_corners=False, antialias=antialias
    )
    return maps.flatten(2).transpose(1, 2).to(position.dtype)
