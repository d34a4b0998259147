"""Export of a published folder as an ONNX graph."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.onnx import onnx_export

from g2l_plugin.encoders.folder import ONNX
from g2l_plugin.errors import UserError
from g2l_plugin.files import new_file
from g2l_plugin.telemetry import switch_off_telemetry

OPSET = 18
"""Version of ONNX's operator set that is written and tested."""

_TOLERANCE = 1e-3
"""Largest accepted absolute difference between an embedding's features in ONNX Runtime and timm."""


def check_onnx() -> None:
    """Checks that the extra `onnx` is installed.

    Raises:
        UserError: It is not.
    """
    switch_off_telemetry()
    try:
        import onnx  # noqa: F401  (timm checks the graph with it)
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (PyTorch exports with it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'g2l-plugin[onnx]'.") from error


def export_onnx(folder: Path) -> Path:
    """Writes `model.onnx` into a published folder, and compares it with timm's model.

    Input: `images`, normalised, (B, 3, H, W) with the student's own H and W. Output: `embeddings`,
    (B, D). B may be any number.

    Args:
        folder: The published folder.

    Returns:
        The file.

    Raises:
        UserError: The extra `onnx` is not installed, or ONNX Runtime gives other embeddings.
    """
    check_onnx()
    import onnxruntime

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad(), new_file(folder / ONNX) as partial:
        with contextlib.redirect_stdout(io.StringIO()):  # PyTorch prints its progress
            onnx_export(
                model,
                str(partial),
                images,
                opset=OPSET,
                use_dynamo=True,
                input_names=["images"],
                output_names=["embeddings"],
                external_data=False,
            )
        # timm's own comparison fails with a traceback, and only says that values differ.
        session = onnxruntime.InferenceSession(partial)
        (embeddings,) = session.run(None, {"images": images.numpy()})
        difference = float((torch.from_numpy(embeddings) - model(images)).abs().max())
        if difference > _TOLERANCE:
            raise UserError(
                f"The embeddings of {folder} in ONNX Runtime differ from timm's by "
                f"{difference:.2g}. Nothing is written; publish without --onnx."
            )
    return folder / ONNX
