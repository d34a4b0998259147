"""What eva's backbone registry builds for `MODEL_NAME=g2l/...`."""

from __future__ import annotations

import os
from typing import Any

from loguru import logger
from torch import nn

from g2l_plugin.encoders.load import (
    WEIGHTS,
    is_vision_transformer,
    load_folder,
    locate_folder,
    sha256_of,
)
from g2l_plugin.errors import UserError


def student(
    source: str | None = None,
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds a published student, `g2l/student`.

    Args:
        source: `hf-hub:org/name` or `local-dir:path`; None takes the variable G2L_STUDENT.
        revision: Branch, tag or commit on the Hub.
        out_indices: Which multi-level patch embeddings to return, as for eva's own backbones;
            None returns the class token's embedding.
        dynamic_img_size: Whether other image sizes than the student's own are taken.

    Returns:
        A timm model that takes normalised images, as eva's data transforms give them. It gives
        embeddings (B, D), or with `out_indices` a list of maps (B, D, H, W).

    Raises:
        UserError: No source was given, or it cannot be loaded.
    """
    source = source or os.environ.get("G2L_STUDENT")
    if not source:
        raise UserError(
            "g2l/student needs to know which student: set G2L_STUDENT=local-dir:path (or "
            "hf-hub:org/name), or MODEL_EXTRA_KWARGS='{source: local-dir:path}'."
        )
    folder, commit = locate_folder(source, revision)
    # Only transformers have an image size to be dynamic about.
    kwargs: dict[str, Any] = (
        {"dynamic_img_size": dynamic_img_size} if is_vision_transformer(folder, source) else {}
    )
    if out_indices is not None:
        kwargs |= {"features_only": True, "out_indices": out_indices}
    model = load_folder(folder, source, model_kwargs=kwargs)
    # A revision in the source is shown resolved.
    name = f"{source.partition('@')[0]}@{commit}" if commit else source
    cfg: Any = model.pretrained_cfg
    mean, std = (list(cfg.get(key) or ()) for key in ("mean", "std"))
    logger.info(
        f"Loaded {name}: {WEIGHTS} sha256 {sha256_of(folder / WEIGHTS)[:12]}, which expects "
        f"NORMALIZE_MEAN={mean or 'unknown'} NORMALIZE_STD={std or 'unknown'}"
    )
    return model


def breast_vitl14(
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds the breast cancer student of the namespace G2L_HUB_NAMESPACE; see `student`."""
    return student(_hub_source("breast_vitl14"), revision, out_indices, dynamic_img_size)


def prostate_vitl14(
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds the prostate cancer student of the namespace G2L_HUB_NAMESPACE; see `student`."""
    return student(_hub_source("prostate_vitl14"), revision, out_indices, dynamic_img_size)


def _hub_source(name: str) -> str:
    namespace = os.environ.get("G2L_HUB_NAMESPACE")
    if not namespace:
        raise UserError(
            f"g2l/{name} needs to know whose: set G2L_HUB_NAMESPACE to the Hub user or "
            f"organisation that published {name}."
        )
    return f"hf-hub:{namespace}/{name}"
