"""Finds the files of an encoder source: on the Hub, on disk or in this package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import timm

from g2l_plugin.encoders.folder import CONFIG
from g2l_plugin.encoders.hub import download_model
from g2l_plugin.encoders.timm_network import explain_build_errors
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError


def split_revision(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Splits `hf-hub:org/name@revision` into source and revision.

    Args:
        source: A source of any scheme.
        revision: A revision given separately.

    Raises:
        UserError: The two revisions differ.
    """
    if not source.startswith("hf-hub:") or "@" not in source:
        return source, revision
    source, _, inline = source.partition("@")
    if revision not in (None, inline):
        raise UserError(
            f"{source} is requested at two revisions, {inline} and {revision}. Give one of them."
        )
    return source, inline


def locate_folder(
    source: str, revision: str | None = None, *, weights: bool = True, code: bool = False
) -> tuple[Path, str | None]:
    """Finds the folder of a published model, and downloads it from the Hub if needed.

    Args:
        source: `hf-hub:`, `local-dir:` or `demo:` source, without a revision.
        revision: Branch, tag or commit on the Hub.
        weights: Whether the weights are needed, or only the config.
        code: Whether the repository's Python files are needed.

    Returns:
        The folder, and the commit on the Hub (None for other sources).

    Raises:
        UserError: The folder or repository does not exist, or has no safetensors weights.
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
            f"{source!r} is not a published model. Expected hf-hub:org/name or local-dir:path."
        )
    files = [CONFIG, WEIGHTS] if weights else [CONFIG]
    for file in files:
        if not (folder / file).is_file():
            raise UserError(
                f"{source}: there is no {folder / file}. Expected a folder with "
                f"{' and '.join(files)}, as timm's save_for_hf(safe_serialization=True) writes it."
            )
    return folder, None


def locate_timm_weights(name: str, source: str) -> tuple[Path, str]:
    """Downloads the weights that timm publishes for a model.

    Args:
        name: timm's name for the model.
        source: Its source, for errors.

    Returns:
        The safetensors file, and its commit on the Hub.

    Raises:
        UserError: timm publishes no weights under this name, or they cannot be downloaded.
    """
    with explain_build_errors(source):
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        raise UserError(
            f"timm has no weights on the Hub for {name!r}. Check the name with "
            "timm.list_pretrained(), or set `pretrained: false` for random weights."
        )
    folder, commit = download_model(cfg.hf_hub_id, None, config=False)
    return folder / WEIGHTS, commit
