"""A student as TorchScript: with its normalisation, or with a linear probe for WSInfer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.probe import LogisticProbe
from g2l_plugin.publishing.export.student import Student

TOLERANCE = 1e-4
"""Largest accepted absolute difference between outputs of TorchScript and of PyTorch in float32."""

_BICUBIC = 3
"""As Pillow numbers it. Slides are read with this filter (`as_tile`), and WSInfer's default is
bilinear. QuPath takes the size only."""

_BATCHES = (1, 3)
"""Sizes of the compared batches; the traced one has 2."""


def write_torchscript(
    module: nn.Module, size: int, file: Path, source: str, tolerance: float = TOLERANCE
) -> Any:
    """Traces a module of images, and compares what is read back from the file with it.

    Args:
        module: Maps images (B, 3, H, W) to (B, D), for any B.
        size: Height and width of its images, in pixels.
        file: The file to write.
        source: Source of the student, for errors.
        tolerance: Largest accepted absolute difference between the outputs.

    Returns:
        The module that was read back.

    Raises:
        UserError: The module cannot be traced, or the trace gives other outputs.
    """
    module = module.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        try:
            with warnings.catch_warnings():
                # PyTorch's advice to use torch.export; tools still take TorchScript. The other
                # warnings are of sizes that become constants, which the comparison below tests.
                warnings.simplefilter("ignore")
                images = torch.rand(2, 3, size, size, generator=generator)
                torch.jit.save(torch.jit.trace(module, images, check_trace=False), file)
                read = torch.jit.load(file, map_location="cpu")
            for n_images in _BATCHES:
                images = torch.rand(n_images, 3, size, size, generator=generator)
                difference = float((read(images) - module(images)).abs().max())
                if not difference <= tolerance:
                    raise UserError(
                        f"The outputs of {source} in TorchScript differ from PyTorch's by "
                        f"{difference:.2g}, so nothing is written. Export it --for onnx or timm."
                    )
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"The network of {source} cannot be traced as TorchScript: {in_one_line(error)}. "
                "Export it --for onnx or timm."
            ) from error
    return read


class Classifier(nn.Module):
    """A student with a linear probe: normalised images (B, 3, H, W) to logits (B, C)."""

    def __init__(self, network: nn.Module, probe: LogisticRegression) -> None:
        """Initializes the classifier.

        Args:
            network: Maps normalised images to embeddings (B, D).
            probe: The probe on these.
        """
        super().__init__()
        self.network = network
        weight, bias = probe.coef_, probe.intercept_
        if len(weight) == 1:  # scikit-learn's only row for two classes is the second's logit
            weight, bias = np.vstack([0 * weight, weight]), np.hstack([0 * bias, bias])
        self.probe = nn.Linear(weight.shape[1], len(weight))
        self.probe.weight.data = torch.from_numpy(weight).float()
        self.probe.bias.data = torch.from_numpy(bias).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C)."""
        return self.probe(self.network(images))


def fit_classifier(
    student: Student,
    encoder: Encoder,
    train: Embeddings,
    embedded: dict[str, Any] | None,
    classes: list[str] | None,
) -> tuple[Classifier, list[str]]:
    """Fits a linear probe on a student's embeddings of labelled tiles.

    Args:
        student: The student.
        encoder: Its encoder.
        train: The embeddings.
        embedded: What the folder of the embeddings says of their model; None if nothing.
        classes: Names of the classes, from class 0; None names them `class_0`, ...

    Raises:
        UserError: The embeddings are of another model, the names are not one for each class, or a
            class has no tiles.
    """
    width = train.values.shape[1]
    if width != student.width:
        raise UserError(
            f"The embeddings have {width:,} features, and those of {student.source} "
            f"{student.width:,}. Give --embeddings that eva computed with this student."
        )
    if embedded is not None and embedded.get("sha256") not in (None, student.tensors):
        raise UserError(
            f"The embeddings are of {embedded.get('name')} (sha256 {embedded['sha256'][:12]}), not "
            f"of {student.source} (sha256 {student.tensors[:12]}). Compute them with this student."
        )
    n_classes = int(train.labels.max()) + 1
    if absent := sorted(set(range(n_classes)) - set(train.labels.tolist())):
        raise UserError(
            f"No training tile is of class {', '.join(map(str, absent))}, of {n_classes} classes. "
            "Number the classes of the manifest from 0 without gaps."
        )
    names = classes or [f"class_{n}" for n in range(n_classes)]
    if len(set(names)) != n_classes:
        raise UserError(
            f"--classes names {', '.join(names)}, and the tiles have {n_classes} classes. Give one "
            "name for each, from class 0, with commas between them."
        )
    return Classifier(encoder.model, LogisticProbe().fit(train).model), names


def wsinfer_config(student: Student, classes: list[str]) -> dict[str, Any]:
    """Describes a classifier for WSInfer and QuPath.

    Source: the schema of model configurations in wsinfer-zoo 0.6.3,
    https://github.com/SBU-BMI/wsinfer-zoo. Both tools read tiles of `patch_size_pixels` at
    `spacing_um_px`, apply `transform`, and take the softmax of what the model returns.

    Args:
        student: The student.
        classes: Names of the classes.
    """
    return {
        "spec_version": "1.0",
        "architecture": student.architecture,
        "num_classes": len(classes),
        "class_names": classes,
        "patch_size_pixels": student.size,
        "spacing_um_px": student.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": student.size, "interpolation": _BICUBIC}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": student.mean, "std": student.std}},
        ],
    }


Fit = Callable[[Student, Encoder], tuple[Classifier, list[str]]]
"""Fits the classifier for WSInfer, once the student is loaded."""
