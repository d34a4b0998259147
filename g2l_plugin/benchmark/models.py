"""The model of a benchmark: its name, its weights and what eva's configs need to know of it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from eva.vision.models import ModelFromRegistry

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.evaluation.segmentation import hash_maps
from g2l_plugin.runs.model_names import absolute_source, find_source
from g2l_plugin.runs.run_folder import STUDENT

_RUN = re.compile(r"run_\d+")
_SIDE = 224
"""Side of the images in eva's configs if RESIZE_DIM is not set."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps of patch embeddings that a model gives, for segmentation.

    Attributes:
        sha256: Hash of the network that gives them, as `SegmentationEmbeddingsWriter` records it.
        variables: Variables of eva's configs that choose them, and say how many channels they have.
    """

    sha256: str
    variables: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as eva's configs take it.

    Attributes:
        label: Its name in results and in the report; its folders are named after it.
        sha256: Hash of its weights, as `EmbeddingsWriter` records it.
        variables: Variables of eva's configs that name it, its width, input size and normalisation.
        maps: Its maps; None if they are not needed.
    """

    label: str
    sha256: str
    variables: dict[str, str]
    maps: Maps | None = None


def load_models(names: Sequence[str], maps: bool = False) -> list[Model]:
    """Loads each model once, to see its width, input size, normalisation and weights.

    Args:
        names: What people call them; see `find_source`. `LABEL=MODEL` gives one its label.
        maps: Whether to load its maps too, those that the variable OUT_INDICES chooses.

    Raises:
        UserError: A model is unknown, cannot be loaded, has random weights, has the label of
            another one, or gives no maps where they are needed.
    """
    models = [_load(label, source) for label, source in name_sources(names).items()]
    if not maps:
        return models
    return [dataclasses.replace(model, maps=_load_maps(model)) for model in models]


def name_sources(names: Sequence[str]) -> dict[str, str]:
    """Finds the label and the source of each model.

    Args:
        names: As in `load_models`.

    Raises:
        UserError: A model is unknown, has random weights, or has the label of another one.
    """
    sources = [_split_label(name) for name in names]
    labels = [label for label, _ in sources]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(
            f"{' and '.join(names)} are both called {repeated}. Name one of them: LABEL=MODEL."
        )
    return dict(sources)


def _split_label(name: str) -> tuple[str, str]:
    """Label and source of a model."""
    label, equals, model = name.partition("=")
    if not equals or Path(name).exists():
        label, model = "", name
    source = find_source(model)
    if source.startswith("scratch:"):
        raise UserError(
            f"{model} has random weights, other ones in every task. Give the folder of a student, "
            "or a published model."
        )
    source = absolute_source(source)
    if label and not re.fullmatch(r"\w[\w.@+-]*", label):
        raise UserError(
            f"The label {label!r} cannot be a folder's name. Expected letters, digits and _.@+-."
        )
    return label or _label(source), source


def _label(source: str) -> str:
    """A name for a source: its common one, else the last part of it that says something."""
    known = find_known(source)
    if known is not None:
        name = known.name
    elif source.startswith("local-dir:"):
        parts = list(Path(source.partition(":")[2]).resolve().parts)
        run = len(parts) > 3 and parts[-1] == STUDENT and bool(_RUN.fullmatch(parts[-2]))
        # The student of a run: <output>/<session>/run_0/student.
        name = f"{parts[-4]}_{parts[-3]}" if run else parts[-1]
    else:
        name = source.partition(":")[2].rpartition("/")[2]
    return re.sub(r"[^\w.@+-]+", "_", name).strip("_.")


def _load(label: str, source: str) -> Model:
    scheme, _, name = source.partition(":")
    if scheme == "timm":
        named = {"MODEL_NAME": f"timm/{name}", "MODEL_EXTRA_KWARGS": "{pretrained: true}"}
    elif scheme == "eva":
        named = {"MODEL_NAME": name}
    else:
        named = {"MODEL_NAME": "g2l/student", "G2L_STUDENT": source}
    encoder = load_as_eva(source)
    return Model(label, hash_tensors(encoder.model), named | _input(encoder))


def load_as_eva(source: str) -> Encoder:
    """Loads an encoder as eva builds it, so that its weights have the hash of eva's results.

    Args:
        source: A source of `name_sources`.

    Raises:
        UserError: It cannot be loaded.
    """
    scheme, _, name = source.partition(":")
    if scheme == "timm":
        return load_encoder(f"eva:timm/{name}", model_kwargs={"pretrained": True})
    return load_encoder(source)


def _input(encoder: Encoder) -> dict[str, str]:
    size = {"RESIZE_DIM": str(encoder.input_size[0])} if encoder.input_size else {}
    mean, std = (
        # Of float32, as few digits as say the same number.
        str([float(f"{value:.7g}") for value in buffer.flatten().tolist()])
        for buffer in (encoder.mean, encoder.std)
    )
    return {
        "IN_FEATURES": str(encoder.embedding_dim),
        **size,
        "NORMALIZE_MEAN": mean,
        "NORMALIZE_STD": std,
    }


def _load_maps(model: Model) -> Maps:
    """Builds the model as eva does for segmentation, to see the channels of its maps."""
    chosen = os.environ.get("OUT_INDICES", "1")
    given = model.variables
    extra = yaml.safe_load(given.get("MODEL_EXTRA_KWARGS", "{}"))
    if "G2L_STUDENT" in given:
        extra["source"] = given["G2L_STUDENT"]
    try:
        network = ModelFromRegistry(
            given["MODEL_NAME"], {"out_indices": yaml.safe_load(chosen)}, extra
        )
        side = int(given.get("RESIZE_DIM", _SIDE))
        with torch.inference_mode():
            maps = network.eval()(torch.zeros(1, 3, side, side))
        channels = [own.shape[1] for own in (maps if isinstance(maps, list) else [maps])]
        if any(own.ndim != 4 for own in maps):
            raise ValueError("it gives embeddings, and no maps")
    except Exception as error:  # timm, transformers and eva raise many kinds
        raise UserError(
            f"{model.label} gives no maps of its layers {chosen} (OUT_INDICES), which segmentation "
            f"needs ({in_one_line(error)}). Choose other layers, or leave out the segmentation "
            "tasks (--tasks)."
        ) from error
    variables = {"IN_FEATURES": str(sum(channels)), "OUT_INDICES": chosen}
    return Maps(hash_maps(network), variables)
