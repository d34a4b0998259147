"""Small encoders that tests make: no network, no weights in the repository."""

from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
"""Arguments that make timm's vit_tiny_patch16_224 tiny indeed."""

WIDER = TINY | {"embed_dim": 48, "depth": 2}


def save_tiny_model(folder: Path, seed: int = 0, mean=(0.7, 0.6, 0.65), **model_args) -> Path:
    """Publishes a tiny random ViT as timm does; returns the folder."""
    torch.manual_seed(seed)
    model_args = TINY | model_args
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **model_args)
    save_for_hf(
        model,
        str(folder),
        safe_serialization=True,
        model_config={"pretrained_cfg": {"license": "apache-2.0"}},
        data_config={
            "input_size": (3, model_args["img_size"], model_args["img_size"]),
            "mean": mean,
            "std": (0.2, 0.25, 0.15),
        },
    )
    return folder
