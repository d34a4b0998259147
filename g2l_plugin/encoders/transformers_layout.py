"""Vision transformers as the transformers library stores them, in timm's architecture.

Many pathology encoders are published for transformers (Hibou, Phikon, Midnight), some with code of
their own. The networks are ones that timm has, under other names of the weights: read so, they run
without anybody's code, and a student that starts from one is published as a plain timm model.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from g2l_plugin.errors import UserError

LAYER_NORM_EPS = 1e-6
"""What timm's vision transformers add to a variance; ViTs of transformers have 1e-12."""

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
# Of masked training, and of a classifier's input: no part of the tokens.
_UNUSED = re.compile(r"embeddings\.mask_token$|pooler\.")


def is_translatable(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a vision transformer that timm has too.

    That is a ViT or DINOv2, with or without registers, with an MLP or SwiGLU.
    """
    # Hibou calls itself what its own code is called; the settings tell.
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
    """A config.json with what it leaves to the defaults of its kind."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        return config
    return transformers.CONFIG_MAPPING[kind](**config).to_dict() | config


def timm_architecture(config: dict[str, Any]) -> str:
    """The architecture of timm that `timm_model_args` makes equal to a config.json."""
    if config.get("use_swiglu_ffn"):
        return "vit_giant_patch14_reg4_dinov2"
    size = {384: "small", 768: "base"}.get(config["hidden_size"], "large")
    return f"vit_{size}_patch14_reg4_dinov2"


def timm_model_args(config: dict[str, Any]) -> dict[str, Any]:
    """Translates transformers' config.json into arguments of timm's architecture.

    Args:
        config: The parsed config.json.

    Returns:
        Arguments of `timm.create_model(timm_architecture(config), ...)`.
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
        # A DINOv2 takes any size, and tiles have this one; a ViT only its own.
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
        weights: State dict as transformers saves it.
        config: The parsed config.json.
        grid_size: Rows and columns of patches of timm's network, its `patch_embed.grid_size`.
        source: Where they are from, for errors.

    Returns:
        State dict of timm's network; position embeddings are resampled as transformers does it
        where the checkpoint has another grid. What is in it under no name of timm's is not dropped.

    Raises:
        UserError: There are no position embeddings or no class token.
    """
    # The name of the network within a larger one, e.g. a classifier.
    position_name = next((name for name in weights if name.endswith(_POSITION)), "")
    prefix = position_name.removesuffix(_POSITION)
    if not position_name or prefix + _CLASS_TOKEN not in weights:
        raise UserError(
            f"{source} has no {_POSITION} and {_CLASS_TOKEN} among its weights. Expected a ViT or "
            "DINOv2 as transformers saves it."
        )
    state: dict[str, torch.Tensor] = {}
    qkv: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for full_name, value in weights.items():
        name = full_name.removeprefix(prefix)
        if match := _QKV.match(name):
            qkv.setdefault((match[1], match[3]), {})[match[2]] = value
        elif not _UNUSED.match(name) and name not in (_POSITION, _CLASS_TOKEN):
            state[_rename(name)] = value
    for (layer, kind), parts in qkv.items():
        if len(parts) == 3:
            state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(
                [parts[name] for name in ("query", "key", "value")]
            )
    # timm adds no position embedding to the class token of this architecture; transformers does.
    position = weights[position_name]
    state["cls_token"] = weights[prefix + _CLASS_TOKEN] + position[:, :1]
    state["pos_embed"] = _resample(
        position[:, 1:], grid_size, antialias=bool(config.get("num_register_tokens"))
    )
    return state


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _resample(position: torch.Tensor, grid_size: tuple[int, int], antialias: bool) -> torch.Tensor:
    """Position embeddings (1, N, D) on another grid of patches."""
    side = round(position.shape[1] ** 0.5)
    if (side, side) == tuple(grid_size):
        return position
    maps = position.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, grid_size, mode="bicubic", align_corners=False, antialias=antialias)
    return maps.flatten(2).transpose(1, 2).to(position.dtype)
