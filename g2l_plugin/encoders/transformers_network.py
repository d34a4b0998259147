"""Networks that timm lacks: built by the transformers library or by their repository's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from g2l_plugin.encoders.weights import WEIGHTS, read_tensors
from g2l_plugin.errors import UserError, in_one_line

# Used by a classifier or for masked training. The tokens do not depend on these weights, which are
# often not published.
_NOT_FOR_TOKENS = re.compile(r"pooler\b|classifier|mask_token|^head\.|decoder")


class TransformersNetwork(nn.Module):
    """A transformers vision model with the interface of a timm model.

    Its `last_hidden_state` (B, T, D) must hold the class token, then registers, then patches.
    """

    def __init__(self, model: Any) -> None:
        """Initializes the network.

        Args:
            model: The model, as `AutoModel` builds it.
        """
        super().__init__()
        self.model = model
        config = model.config
        self.num_features: int = config.hidden_size
        self.num_prefix_tokens = 1 + (getattr(config, "num_register_tokens", 0) or 0)
        self.input_size = getattr(config, "image_size", None)
        self.patch_size = getattr(config, "patch_size", None)
        self.normalization: tuple[list[float] | None, list[float] | None] = (None, None)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens (B, T, D) of normalised images (B, 3, H, W)."""
        return self.model(pixel_values=images).last_hidden_state

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The class token (B, D) of normalised images (B, 3, H, W)."""
        return self.forward_features(images)[:, 0]


def load_transformers(
    folder: Path,
    source: str,
    config: dict[str, Any],
    *,
    pretrained: bool,
    dtype: torch.dtype,
    remote_code: bool,
) -> TransformersNetwork:
    """Loads a model with the transformers library's class for it, or with the folder's code.

    Args:
        folder: Folder with config.json and model.safetensors.
        source: Its source, for errors.
        config: The parsed config.json.
        pretrained: False gives random weights.
        dtype: Precision of the weights.
        remote_code: Whether Python code in the folder may run.

    Raises:
        UserError: The library has no class for it and its code may not run, or weights are missing.
    """
    _check_code_allowed(source, config, remote_code)
    options: dict[str, Any] = {
        "trust_remote_code": remote_code,
        "local_files_only": True,
        "code_revision": folder.name if remote_code else None,
    }
    try:
        if not pretrained:
            parsed = transformers.AutoConfig.from_pretrained(folder, **options)
            model = transformers.AutoModel.from_config(parsed, trust_remote_code=remote_code)
            network = TransformersNetwork(model.to(dtype))
            _check_tokens(network, source)
            return network
        read_tensors(folder / WEIGHTS, source)
        model, report = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=dtype, **options
        )
        for part in (*model.parameters(), *model.buffers()):
            part.data = part.data.clone()  # it may be the mapped file, which can change
        network = TransformersNetwork(model)
        _check_tokens(network, source)
    except UserError:
        raise
    except Exception as error:  # each network raises errors of different types
        raise UserError(
            f"transformers cannot build {source} as a vision transformer: {type(error).__name__}: "
            f"{in_one_line(error)}. Check its config.json and that its weights belong to it."
        ) from error
    wrong = sorted(
        name
        for keys in ("missing_keys", "mismatched_keys", "unexpected_keys")
        for name in map(str, report[keys])
        if not _NOT_FOR_TOKENS.search(name)
    )
    if wrong:  # transformers leaves missing weights random and ignores unknown ones
        raise UserError(
            f"{source}: {len(wrong)} weights in {WEIGHTS} do not match its config.json: missing, "
            f"unknown or of another shape ({', '.join(wrong[:3])}). Check that the two files "
            "belong together."
        )
    return network


def _check_tokens(network: TransformersNetwork, source: str) -> None:
    """Runs one image to check that the output is a class token, registers and patch tokens."""
    size = network.input_size or 224
    height, width = (size, size) if isinstance(size, int) else size
    weights = next(network.parameters())
    with torch.no_grad():
        tokens = network.eval().forward_features(torch.zeros(1, 3, height, width).to(weights))
    expected = tokens.shape[1] if tokens.ndim == 3 else 0
    if patch := network.patch_size:
        patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
        n_patches = (height // patch_height) * (width // patch_width)
        expected = network.num_prefix_tokens + n_patches
    if tokens.shape != (1, expected, network.num_features):
        raise UserError(
            f"{source} gives {tuple(tokens.shape)} for an image of {height}x{width} px. Expected a "
            f"vision transformer's tokens, class token first: (1, {expected}, "
            f"{network.num_features})."
        )


def _check_code_allowed(source: str, config: dict[str, Any], remote_code: bool) -> None:
    """Raises a `UserError` if a model needs code that may not run, or another repository's code."""
    name = source.partition(":")[2]
    if not remote_code:
        if config["model_type"] not in transformers.CONFIG_MAPPING:
            raise UserError(
                f"{source} has type {config['model_type']!r}, which transformers "
                f"{transformers.__version__} does not have. Read the code in its repository; to "
                f"run it, set `trust_remote_code: {name}` (TRUST_REMOTE_CODE={name})."
            )
        return
    for reference in config.get("auto_map", {}).values():
        owner = str(reference).partition("--")[0] if "--" in str(reference) else name
        if owner != name:
            raise UserError(
                f"{source} would run code of another repository, {owner}. Only code in {name} is "
                f"allowed. Copy both into one folder (local-dir:path), and remove '{owner}--' from "
                "`auto_map` in its config.json."
            )
