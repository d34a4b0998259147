"""The network of a published folder: config.json and model.safetensors, of timm or transformers."""

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
from timm.models import is_model_in_modules, model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from g2l_plugin.encoders import transformers_layout
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.hub import CONFIG, PREPROCESSOR
from g2l_plugin.encoders.transformers_network import load_transformers
from g2l_plugin.encoders.weights import WEIGHTS, build_network
from g2l_plugin.errors import UserError, in_one_line

_LIBRARY_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)
_VIT_MODULES = ("vision_transformer", "deit", "eva")


def load_folder(
    folder: Path,
    source: str,
    *,
    pretrained: bool = True,
    model_kwargs: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    remote_code: bool = False,
) -> nn.Module:
    """Builds the network of a folder.

    A ViT or DINOv2 of transformers becomes timm's; what timm does not have is of the transformers
    library's own class, or of the folder's code where that is allowed.

    Args:
        folder: The folder.
        source: Its source, for errors.
        pretrained: False gives random weights.
        model_kwargs: Arguments for `timm.create_model` beyond those of config.json.
        dtype: Precision to hold the weights in.
        remote_code: Whether Python code in the folder may run.

    Raises:
        UserError: The folder holds no model that can be built, or other weights than its config
            says.
    """
    config = read_json(folder / CONFIG, source)
    file = folder / WEIGHTS if pretrained else None
    if "architecture" in config:
        if config.get("model_args", {}).get("global_pool") == "":
            # Published to give all tokens, e.g. Virchow2; an encoder gives the class token.
            model_kwargs = {"global_pool": "token"} | model_kwargs
        network: Any = create_timm(f"local-dir:{folder}", source, file, dtype, model_kwargs)
        # Where a config does not say, timm takes ImageNet's.
        said = config.get("pretrained_cfg", config)
        for name in {"mean", "std"} - said.keys():
            network.pretrained_cfg.pop(name, None)
        return network
    if transformers_layout.is_translatable(config) and not remote_code:
        with told(source):
            return _translate(folder, source, config, file, dtype, model_kwargs)
    if "model_type" not in config:
        raise UserError(
            f"{source}: its config.json is neither timm's (no `architecture`) nor transformers' "
            "(no `model_type`). Expected a model published for one of them."
        )
    if model_kwargs:
        raise UserError(
            f"{source} is a network of transformers that timm has not, and takes no "
            f"`model_kwargs`; given {', '.join(model_kwargs)}. Leave them out."
        )
    network = load_transformers(
        folder, source, config, pretrained=pretrained, dtype=dtype, remote_code=remote_code
    )
    network.normalization = read_normalization(folder, source)
    return network


def create_timm(
    name: str,
    source: str,
    file: Path | None,
    dtype: torch.dtype,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    """Builds a timm model and gives it the weights of a file, each of them.

    timm itself only logs, below its warnings, which weights it did not find and left random.

    Args:
        name: timm's name of the model, or `local-dir:` of a folder with config.json.
        source: Its source, for errors.
        file: The safetensors file; None leaves random weights.
        dtype: Precision to hold the weights in.
        model_kwargs: Arguments for `timm.create_model`; `mlp_layer` and `act_layer` may be names.
    """
    kwargs = {"num_classes": 0} | model_kwargs
    if isinstance(layer := kwargs.get("mlp_layer"), str):  # a config can only name it
        if not callable(getattr(timm.layers, layer, None)):
            raise UserError(
                f"{source}: timm has no layer {layer!r} for `mlp_layer`. Expected a name of "
                "timm.layers, e.g. Mlp or SwiGLUPacked."
            )
        kwargs["mlp_layer"] = getattr(timm.layers, layer)

    def build() -> nn.Module:
        return timm.create_model(name, pretrained=False, **kwargs)

    with told(source):
        if file is None:
            return build().to(dtype)
        if kwargs.get("features_only"):  # timm cuts off what comes after the last map
            plain = kwargs | {"features_only": None, "out_indices": None}
            create_timm(name, source, file, dtype, plain)  # which looks at every weight
            overlay = None if name.startswith("local-dir:") else {"file": str(file)}
            return timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
            ).to(dtype)
        return build_network(build, file, source, _as_timm_loads, dtype)


def is_vision_transformer(folder: Path, source: str) -> bool:
    """Whether the model of a folder is a vision transformer of timm, or becomes one.

    Args:
        folder: The folder.
        source: Its source, for errors.
    """
    config = read_json(folder / CONFIG, source)
    if "architecture" in config:
        return is_model_in_modules(config["architecture"], _VIT_MODULES)
    return transformers_layout.is_translatable(config)


def read_json(file: Path, source: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        file: The file.
        source: What it belongs to, for errors.

    Raises:
        UserError: It holds none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source}: {file} is no JSON: {error}. Fetch the folder anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: {file} holds no JSON object. Fetch the folder anew.")
    return content


def read_normalization(folder: Path, source: str) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std of a model published for transformers; None where it does not say.

    Args:
        folder: The folder.
        source: Its source, for errors.

    Raises:
        UserError: It prepares images in another way.
    """
    file = folder / PREPROCESSOR
    settings = read_json(file, source) if file.is_file() else {}
    if settings.get("do_normalize", True) is False:
        raise UserError(
            f"{source} takes images that are not normalised ({PREPROCESSOR}: do_normalize false). "
            "Give `mean: [0, 0, 0]` and `std: [1, 1, 1]` beside `source`, and remove that line."
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3:
        raise UserError(
            f"{source} takes images scaled by {factor:g} ({PREPROCESSOR}: rescale_factor). "
            "Expected 1/255, which gives images in [0, 1]."
        )
    return settings.get("image_mean"), settings.get("image_std")


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """The config.json that plain timm builds an encoder's network from, with its normalisation.

    Args:
        encoder: The encoder.

    Raises:
        UserError: Plain timm cannot build it, or not with all its settings.
    """
    model: Any = encoder.model
    problem = getattr(model, "unpublishable", None)
    if not getattr(model, "pretrained_cfg", None):
        problem = f"{type(model).__name__} is none of timm's networks"
    if problem is None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                save_config_for_hf(
                    model,
                    f"{folder}/{CONFIG}",
                    # The tag of the start weights would name weights that these no longer are.
                    model_config={"pretrained_cfg": {"tag": "g2l"}},
                    data_config={
                        "input_size": (3, *(encoder.input_size or (224, 224))),
                        "mean": _decimals(encoder.mean),
                        "std": _decimals(encoder.std),
                        "crop_pct": 1.0,
                    },
                )
                config = read_json(Path(folder) / CONFIG, encoder.provenance.source)
        except ValueError as error:  # a layer that is no name
            problem = str(error).rstrip(".")
        else:
            config["pretrained_cfg"].pop("license", None)  # that of the start weights
            # It stands beside them too, and transformers takes it only once.
            config.get("model_args", {}).pop("num_classes", None)
            return config
    raise UserError(
        f"{encoder.provenance.source} cannot become a published timm model: {problem}. It can be a "
        "teacher; `g2l models` lists starts for a student."
    )


def _decimals(buffer: torch.Tensor) -> list[float]:
    """The decimals that a float32 buffer holds."""
    return [float(str(value)) for value in buffer.flatten().cpu().numpy()]


@contextlib.contextmanager
def told(
    source: str,
    library: str = "timm",
    advice: str = "`model_kwargs`, and that the weights belong to its config.json",
) -> Iterator[None]:
    """Turns what a library says about wrong arguments or weights into one line.

    Args:
        source: The source that is being loaded.
        library: Who builds it.
        advice: What to check.
    """
    try:
        yield
    except UserError:
        raise
    except _LIBRARY_ERRORS as error:
        raise UserError(
            f"{library} cannot build {source}: {type(error).__name__}: {in_one_line(error)}. "
            f"Check {advice}."
        ) from error


def _as_timm_loads(state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """What timm's own loading makes of a checkpoint: sizes adapted, the classifier left out."""
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


def _translate(
    folder: Path,
    source: str,
    config: dict[str, Any],
    file: Path | None,
    dtype: torch.dtype,
    model_kwargs: dict[str, Any],
) -> nn.Module:
    """Builds timm's architecture for a model of transformers; see `transformers_layout`."""
    config = transformers_layout.complete(config)
    architecture = transformers_layout.timm_architecture(config)
    kwargs = {"num_classes": 0} | transformers_layout.timm_model_args(config) | model_kwargs
    mean, std = read_normalization(folder, source)
    size = kwargs["img_size"]
    # timm's own settings of this architecture are those of another model.
    cfg = {
        "input_size": (3, *((size, size) if isinstance(size, int) else size)),
        "mean": mean,
        "std": std,
        "license": None,
    }

    def build() -> nn.Module:
        network: Any = timm.create_model(architecture, pretrained_cfg_overlay=cfg, **kwargs)
        eps = config.get("layer_norm_eps", transformers_layout.LAYER_NORM_EPS)
        if eps != transformers_layout.LAYER_NORM_EPS:
            for module in network.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = eps
            # A config.json of timm has no place for it; who publishes the network has to know.
            network.unpublishable = f"its layer norm's epsilon is {eps:g}, which timm has not"
        return network

    def convert(state: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
        inner: Any = network.model if kwargs.get("features_only") else network
        state = transformers_layout.timm_state_dict(
            state, config, inner.patch_embed.grid_size, source
        )
        if inner is network:
            return state
        # timm has cut off what comes after the last map.
        state = {f"model.{name}": value for name, value in state.items()}
        return {name: state[name] for name in network.state_dict()}

    if file is None:
        return build().to(dtype)
    return build_network(build, file, source, convert, dtype)
