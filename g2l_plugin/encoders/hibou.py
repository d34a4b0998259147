"""DINOv2 with registers and SwiGLU, as transformers stores it (Hibou-L), in timm's architecture.

`histai/hibou-L` is published for transformers with remote code only. The network is one that timm
has under another name and other weight names, so its weights are read without running that code.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed

ARCHITECTURE = "vit_giant_patch14_reg4_dinov2"
"""timm's ViT with four registers and SwiGLU; its dimensions are given by `timm_model_args`."""

_IMG_SIZE = 224

_RENAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.norm([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)

_QKV = re.compile(
    r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$"
)


def is_transformers_layout(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a transformers DINOv2 with registers and SwiGLU."""
    return bool(config.get("use_swiglu_ffn")) and "num_register_tokens" in config


def timm_model_args(config: dict[str, Any]) -> dict[str, Any]:
    """Translates transformers' config.json into arguments of timm's architecture.

    Args:
        config: The parsed config.json.

    Returns:
        Arguments of `timm.create_model(ARCHITECTURE, ...)`.
    """
    dim = config["hidden_size"]
    # transformers shrinks a SwiGLU's width by 2/3 and rounds it up to a multiple of 8.
    hidden = (int(int(dim * config.get("mlp_ratio", 4)) * 2 / 3) + 7) // 8 * 8
    return {
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": 2 * hidden / dim,
        "patch_size": config["patch_size"],
        "reg_tokens": config["num_register_tokens"],
        "img_size": _IMG_SIZE,
    }


def timm_state_dict(
    weights: dict[str, torch.Tensor], grid_size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Renames transformers' weights to timm's.

    Args:
        weights: State dict as transformers saves it.
        grid_size: Rows and columns of patches of timm's network, its `patch_embed.grid_size`.

    Returns:
        State dict of `timm.create_model(ARCHITECTURE, **timm_model_args(config))`; position
        embeddings are resampled where the checkpoint has another grid.
    """
    weights = {key.removeprefix("model."): value for key, value in weights.items()}
    state: dict[str, torch.Tensor] = {}
    qkv: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, value in weights.items():
        if match := _QKV.match(key):
            qkv.setdefault((match[1], match[3]), {})[match[2]] = value
        else:
            for pattern, replacement in _RENAMES:
                if re.match(pattern, key):
                    state[re.sub(pattern, replacement, key)] = value
    for (layer, kind), parts in qkv.items():
        state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(
            [parts[name] for name in ("query", "key", "value")]
        )
    # timm adds no position embedding to the class token; transformers does.
    position = weights["embeddings.position_embeddings"]
    state["cls_token"] = weights["embeddings.cls_token"] + position[:, :1]
    state["pos_embed"] = resample_abs_pos_embed(
        position[:, 1:], list(grid_size), num_prefix_tokens=0
    )
    return state
