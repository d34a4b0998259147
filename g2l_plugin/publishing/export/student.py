"""What another tool must know of a student: its network, its normalisation, its tiles."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import TRAINING_CONFIG
from g2l_plugin.encoders.hub_errors import explain_hub_errors
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.locate import locate_folder, split_revision
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError

USUAL_MPP = 0.5
"""Micrometres per pixel of the paper's tiles (20x), for a student that names no other."""

_NO_NAME = ("student", "teacher", "start")


@dataclasses.dataclass(frozen=True)
class Student:
    """A student as other tools need it.

    Attributes:
        name: A Python identifier that names its weights too, e.g. `breast_vitl14_1a2b3c4d`.
        source: Its source, without folders of this machine.
        architecture: timm's name for its network.
        model_args: Further arguments for `timm.create_model`.
        width: Features of an embedding.
        size: Height and width of its tiles, in pixels.
        mean: Normalisation mean, RGB, for images in [0, 1].
        std: Normalisation standard deviation, RGB.
        mpp: Resolution of its tiles, in micrometres per pixel.
        tensors: Hash of its weights (`hash_tensors`).
        license: Licence identifier; None if its folder names none.
    """

    name: str
    source: str
    architecture: str
    model_args: dict[str, Any]
    width: int
    size: int
    mean: list[float]
    std: list[float]
    mpp: float
    tensors: str
    license: str | None = None


def load_student(source: str, mpp: float | None = None) -> tuple[Student, Encoder, str | None]:
    """Loads a student, and finds what other tools must know of it.

    Args:
        source: A source for `load_encoder`.
        mpp: Resolution of its tiles, in micrometres per pixel; None reads it from the config of its
            training, in its folder.

    Returns:
        The student, its encoder, and a sentence on a resolution that is assumed or differs from
        that of its training (None if it is neither).

    Raises:
        UserError: The source is no student, timm alone cannot build its network, or its tiles are
            not square.
    """
    encoder = load_encoder(source).eval()
    config = timm_config(encoder)
    cfg = config["pretrained_cfg"]
    height, width = cfg["input_size"][1:]
    if height != width:
        raise UserError(
            f"{source} takes images of {height}x{width} px, and other tools give square tiles. "
            "Export a student of square images."
        )
    trained = _trained_mpp(source, encoder)
    note = None
    if mpp is not None and mpp <= 0:
        raise UserError(f"--mpp is {mpp}. Expected micrometres per pixel, e.g. 0.5 for 20x.")
    if mpp is None and trained is None:
        note = (
            f"{source} does not say the resolution of its tiles: {USUAL_MPP} um/px is assumed. "
            "If it is another, give --mpp."
        )
    elif mpp is not None and trained not in (None, mpp):
        note = f"{source} was trained on tiles of {trained} um/px; --mpp {mpp} is written."
    scheme, _, place = split_revision(source)[0].partition(":")
    label = re.sub(r"\W+", "_", Path(place).expanduser().resolve().name if place else scheme)
    hashed = hash_tensors(encoder.model)
    prefix = "g2l_student" if label.lower() in _NO_NAME or not label[:1].isalpha() else label
    return (
        Student(
            name=f"{prefix}_{hashed[:8]}",
            source=f"{scheme}:{place.rstrip('/').rpartition('/')[2]}"
            if scheme == "local-dir"
            else source,
            architecture=config["architecture"],
            model_args={"num_classes": 0} | config.get("model_args", {}),
            width=encoder.embedding_dim,
            size=height,
            mean=cfg["mean"],
            std=cfg["std"],
            mpp=mpp or trained or USUAL_MPP,
            tensors=hashed,
            license=encoder.provenance.license,
        ),
        encoder,
        note,
    )


def _trained_mpp(source: str, encoder: Encoder) -> float | None:
    """Reads the resolution of the training tiles; None if no config of the training says it."""
    source = split_revision(source)[0]
    scheme, _, name = source.partition(":")
    if scheme == "hf-hub":
        with explain_hub_errors(source):
            try:
                revision = encoder.provenance.revision
                file = Path(hf_hub_download(name, TRAINING_CONFIG, revision=revision))
            except EntryNotFoundError:  # the repository has none, or no connection and no copy
                return None
    elif scheme in ("local-dir", "demo"):
        file = locate_folder(source)[0] / TRAINING_CONFIG
    else:
        return None
    if not file.is_file():
        return None
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key in ("data", "init_args", "datasets", "train", "init_args", "target_mpp"):
            value = value[key]
        return float(value)
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
