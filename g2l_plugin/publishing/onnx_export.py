"""A published folder as an ONNX graph."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import timm
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.files import new_file

ONNX = "model.onnx"
OPSET = 18
"""The version of ONNX's operators that is written, and that the tests run."""

_TOLERANCE = 1e-3


def export_onnx(folder: Path) -> Path:
    """Writes `model.onnx` into a published folder, and runs it once beside timm's model.

    Its input `images` is normalised (batch, 3, H, W) of the student's own size, its output
    `embeddings` (batch, D); the batch is of any size.

    Args:
        folder: The published folder.

    Returns:
        The file.

    Raises:
        UserError: The extra `onnx` is not installed, or ONNX gives other embeddings.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (PyTorch exports with it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'g2l-plugin[onnx]'.") from error
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, *model.pretrained_cfg["input_size"])
    with new_file(folder / ONNX) as partial:
        # PyTorch prints its progress.
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                model,
                (images,),
                partial,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            expected = model(images)
        session = onnxruntime.InferenceSession(partial)
        (given,) = session.run(None, {"images": images.numpy()})
        difference = float((torch.from_numpy(given) - expected).abs().max())
        if difference > _TOLERANCE:
            raise UserError(
                f"ONNX gives other embeddings for {folder} than timm, by {difference:.2g}. Nothing "
                "is written; publish without --onnx."
            )
    return folder / ONNX
