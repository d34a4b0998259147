"""Builds the backbones that eva's registry lists as `g2l/...` (MODEL_NAME)."""

from __future__ import annotations

import os
from typing import Any

from loguru import logger
from torch import nn

from g2l_plugin.encoders.folder import is_vision_transformer, load_folder
from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.load import own_normalization
from g2l_plugin.encoders.locate import locate_folder, split_revision
from g2l_plugin.encoders.weights import WEIGHTS, hashed
from g2l_plugin.errors import UserError


def student(
    source: str | None = None,
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds a published student, `g2l/student`.

    Args:
        source: `hf-hub:org/name`, `local-dir:path` or `demo:teacher`; None uses the variable
            G2L_STUDENT.
        revision: Branch, tag or commit on the Hub.
        out_indices: Layers whose patch embeddings to return, as in eva's backbones; None returns
            the class token.
        dynamic_img_size: Whether to accept images of other sizes than the student's.

    Returns:
        A timm model for images (B, 3, H, W) that eva's transforms have normalised. It returns
        embeddings (B, D), or with `out_indices` a list of maps (B, D, H, W).

    Raises:
        UserError: No source is given, or it cannot be loaded.
    """
    source = source or os.environ.get("G2L_STUDENT")
    if not source:
        raise UserError(
            "g2l/student needs the student's source. Set G2L_STUDENT=local-dir:path (or "
            "hf-hub:org/name), or MODEL_EXTRA_KWARGS='{source: local-dir:path}'."
        )
    source, revision = split_revision(source, revision)
    folder, commit = locate_folder(source, revision)
    known = find_known(source)
    kwargs: dict[str, Any] = dict(known.model_kwargs) if known else {}
    if is_vision_transformer(
        folder, source
    ):  # other networks accept any size, and no such argument
        kwargs["dynamic_img_size"] = dynamic_img_size
    if out_indices is not None:
        kwargs |= {"features_only": True, "out_indices": out_indices}
    with hashed(folder / WEIGHTS, source) as sha256:
        model = load_folder(folder, source, model_kwargs=kwargs)
    name = f"{source}@{commit}" if commit else source
    mean, std = (list(values or ()) for values in own_normalization(model, source))
    model.source = name  # type: ignore[assignment]  # named in eva's results
    logger.info(
        f"Loaded {name}: {WEIGHTS} sha256 {sha256[:12]}. It expects "
        f"NORMALIZE_MEAN={mean or 'unknown'} NORMALIZE_STD={std or 'unknown'}"
    )
    return model


def breast_vitl14(
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds `breast_vitl14` of the Hub namespace G2L_HUB_NAMESPACE; see `student`."""
    return student(_hub_source("breast_vitl14"), revision, out_indices, dynamic_img_size)


def prostate_vitl14(
    revision: str | None = None,
    out_indices: int | tuple[int, ...] | None = None,
    dynamic_img_size: bool = True,
) -> nn.Module:
    """Builds `prostate_vitl14` of the Hub namespace G2L_HUB_NAMESPACE; see `student`."""
    return student(_hub_source("prostate_vitl14"), revision, out_indices, dynamic_img_size)


def _hub_source(name: str) -> str:
    namespace = os.environ.get("G2L_HUB_NAMESPACE")
    if not namespace:
        raise UserError(
            f"g2l/{name} needs a Hub namespace. Set G2L_HUB_NAMESPACE to the user or organisation "
            f"that published {name}."
        )
    return f"hf-hub:{namespace}/{name}"
