"""Builds timm networks with every weight from a file, and writes their config.json."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from safetensors import SafetensorError
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.weights import build_network
from g2l_plugin.errors import UserError, in_one_line

_BUILD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def create_timm(
    name: str,
    source: str,
    file: Path | None,
    dtype: torch.dtype,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    """Builds a timm model and checks that a file holds each of its weights.

    timm leaves missing weights random and logs that below warning level.

    Args:
        name: timm's name for the model, or `local-dir:` and a folder with config.json.
        source: The model's source, for errors.
        file: The safetensors file; None gives random weights.
        dtype: Precision of the weights.
        model_kwargs: Arguments for `timm.create_model`; `mlp_layer` and `act_layer` may be names.

    Raises:
        UserError: timm rejects the arguments, or the file holds another network's weights.
    """
    kwargs = {"num_classes": 0} | model_kwargs
    if isinstance(layer := kwargs.get("mlp_layer"), str):  # YAML and JSON cannot hold a class
        if not callable(getattr(timm.layers, layer, None)):
            raise UserError(
                f"{source}: timm has no layer {layer!r} for `mlp_layer`. Expected a name in "
                "timm.layers, e.g. Mlp or SwiGLUPacked."
            )
        kwargs["mlp_layer"] = getattr(timm.layers, layer)

    def build() -> nn.Module:
        return timm.create_model(name, pretrained=False, **kwargs)

    with explain_build_errors(source):
        if file is None:
            return build().to(dtype)
        if kwargs.get("features_only"):
            # timm drops the layers after the last map, so the file holds more weights than the
            # network. Building the whole network first checks them all.
            whole = kwargs | {"features_only": None, "out_indices": None}
            create_timm(name, source, file, dtype, whole)
            overlay = None if name.startswith("local-dir:") else {"file": str(file)}
            return timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
            ).to(dtype)
        return build_network(build, file, source, _adapt_checkpoint, dtype)


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """Describes an encoder's network and normalisation as the config.json that timm reads.

    Args:
        encoder: The encoder.

    Returns:
        The content of config.json.

    Raises:
        UserError: timm alone cannot build the network with all its settings.
    """
    model: Any = encoder.model
    problem = getattr(model, "unpublishable", None)
    if not getattr(model, "pretrained_cfg", None):
        problem = f"{type(model).__name__} is not a timm network"
    if problem is None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "config.json"
                save_config_for_hf(
                    model,
                    str(file),
                    # The original tag would name the start weights, which training has replaced.
                    model_config={"pretrained_cfg": {"tag": "g2l"}},
                    data_config={
                        "input_size": (3, *(encoder.input_size or (224, 224))),
                        "mean": _to_decimals(encoder.mean),
                        "std": _to_decimals(encoder.std),
                        "crop_pct": 1.0,
                    },
                )
                config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # a layer given as a class, which JSON cannot hold
            problem = str(error).rstrip(".")
        else:
            config["pretrained_cfg"].pop("license", None)  # the licence of the start weights
            # config.json also has it at the top level, and transformers rejects it twice.
            config.get("model_args", {}).pop("num_classes", None)
            return config
    raise UserError(
        f"{encoder.provenance.source} cannot become a published timm model: {problem}. Use it as a "
        "teacher only; `g2l models` lists networks that a student can start from."
    )


def _to_decimals(buffer: torch.Tensor) -> list[float]:
    """Converts float32 values to the shortest decimals that they stand for: 0.7, not 0.69999998."""
    return [float(str(value)) for value in buffer.flatten().cpu().numpy()]


@contextlib.contextmanager
def explain_build_errors(
    source: str,
    library: str = "timm",
    advice: str = "`model_kwargs`, and that the weights belong to its config.json",
) -> Iterator[None]:
    """Turns a library's error about arguments or weights into a one-line `UserError`.

    Args:
        source: The source that is being loaded.
        library: The library that builds the network.
        advice: What the user should check.

    Raises:
        UserError: The block raised an error of the library, or a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except _BUILD_ERRORS as error:
        raise UserError(
            f"{library} cannot build {source}: {type(error).__name__}: {in_one_line(error)}. "
            f"Check {advice}."
        ) from error


def _adapt_checkpoint(state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """Converts a checkpoint as timm does when it loads one: resizes it and drops the classifier."""
    cfg = network.pretrained_cfg
    module = sys.modules[model_entrypoint(cfg["architecture"]).__module__]
    if (adapt := getattr(module, "checkpoint_filter_fn", None)) is not None:
        state = adapt(state, network)
    classifiers = cfg.get("classifier") or ()
    prefixes = tuple(
        f"{name}." for name in ((classifiers,) if isinstance(classifiers, str) else classifiers)
    )
    expected = network.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name in expected or not name.startswith(prefixes)
    }
