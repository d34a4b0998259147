"""A student in fewer bits: which tool takes which precision, how it is made, and what it costs."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError
from g2l_plugin.files import new_file
from g2l_plugin.publishing.export.torchscript import write_torchscript

FLOAT32 = "float32"
"""The precision that a student is trained and published in; every tool takes it."""

_TAKEN = {"onnx": ("float16", "int8"), "torchscript": ("float16", "bfloat16")}
"""The lower precisions that a tool takes."""

_ROUNDED_TOLERANCE = 0.05
"""Largest accepted absolute difference between outputs of TorchScript and of PyTorch, both rounded:
batches of another size are summed in another order."""

_BATCH = 8


class ExampleTiles(NamedTuple):
    """Tiles to measure the cost of a precision on.

    Attributes:
        read: Maps a size in pixels to images in [0, 1], float32 (N, 3, size, size).
        origin: What they are, in a few words.
    """

    read: Callable[[int], torch.Tensor]
    origin: str


class _Rounded(nn.Module):
    """An encoder whose network computes in a lower precision; images and embeddings are float32."""

    def __init__(self, encoder: Encoder, precision: str) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        # The network alone: the encoder normalises images before it rounds them.
        self.encoder.model.to(getattr(torch, precision))

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images).float()


def check_precision(tool: str, precision: str) -> None:
    """Checks that a tool takes a precision.

    Raises:
        UserError: It does not; the error names those that do.
    """
    if precision == FLOAT32 or precision in _TAKEN.get(tool, ()):
        return
    lower = sorted({name for names in _TAKEN.values() for name in names})
    if precision not in lower:
        raise UserError(f"Unknown precision {precision!r}. Expected {FLOAT32}, {', '.join(lower)}.")
    takers = [name for name, taken in _TAKEN.items() if precision in taken]
    own = ", ".join((FLOAT32, *_TAKEN.get(tool, ())))
    raise UserError(
        f"An export for {tool} cannot have the precision {precision}, but {own}. {precision} is "
        f"for {' and '.join(takers)}."
    )


def describe_cost(cost: dict[str, Any]) -> str:
    """Says in a sentence how near embeddings are to those in float32, tile by tile."""
    # Down, so that no tile is below what is said.
    mean, smallest = (math.floor(cost[f"cosine_{name}"] * 1e5) / 1e5 for name in ("mean", "min"))
    return (
        f"{cost['precision']}, {cost['bytes'] / 1e6:.1f} MB: the cosine with the embedding in "
        f"float32 is {mean:.5f} on average and at least {smallest:.5f}, "
        f"on {cost['n_tiles']} tiles of {cost['tiles']}."
    )


def lower_onnx(
    graph: Path, encoder: Encoder, precision: str, tiles: ExampleTiles, size: int
) -> dict[str, Any]:
    """Rewrites an ONNX graph of a student in a lower precision; input and output stay float32.

    `float16` rounds all weights and operations (onnxruntime.transformers.float16). `int8` keeps the
    weights of matrix multiplications as integers with a scale for each output, and rounds what they
    are multiplied with while the graph runs (onnxruntime.quantization.quantize_dynamic). All else
    stays in float32: ONNX Runtime's integer convolution is slower than its convolution
    (`benchmarks/exports.py`).

    Args:
        graph: The graph in float32, which is replaced.
        encoder: The student.
        precision: `float16` or `int8`.
        tiles: What is embedded in both precisions.
        size: Height and width of the student's images, in pixels.

    Returns:
        The cost; see `describe_cost`.

    Raises:
        UserError: The graph has no matrix multiplications that int8 could hold, or an embedding is
            not finite in this precision.
    """
    import onnxruntime

    if precision == "float16":
        _round_graph(graph)
    else:
        _quantize_graph(graph, encoder.provenance.source)
    session = onnxruntime.InferenceSession(graph)

    def embed(images: torch.Tensor) -> torch.Tensor:
        normalized = (images - encoder.mean) / encoder.std
        return torch.from_numpy(session.run(None, {"images": normalized.numpy()})[0])

    return _measure_cost(encoder, embed, precision, tiles, size, graph)


def lower_torchscript(
    file: Path, encoder: Encoder, precision: str, tiles: ExampleTiles, size: int
) -> dict[str, Any]:
    """Writes a student as TorchScript whose network computes in a lower precision.

    Args:
        file: The file to write.
        encoder: The student.
        precision: `float16` or `bfloat16`.
        tiles: What is embedded in both precisions.
        size: Height and width of the student's images, in pixels.

    Returns:
        The cost; see `describe_cost`.

    Raises:
        UserError: The network cannot be traced, or an embedding is not finite in this precision.
    """
    rounded = _Rounded(encoder, precision).eval()
    read = write_torchscript(rounded, size, file, encoder.provenance.source, _ROUNDED_TOLERANCE)
    return _measure_cost(encoder, read, precision, tiles, size, file)


def _round_graph(graph: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings(), new_file(graph) as partial:
        # Of weights below float16's smallest number; what that costs is measured.
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), partial)


def _quantize_graph(graph: Path, source: str) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with new_file(graph) as partial:
        # Its advice to simplify the graph first goes to the root logger; ONNX Runtime does so.
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(
                graph,
                partial,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        operations = {node.op_type for node in onnx.load(partial).graph.node}
        if "MatMulInteger" not in operations:
            raise UserError(
                f"{source} cannot be exported as int8, which is for matrix multiplications: a "
                "convolutional network has none. Export it as float16 or float32."
            )


@torch.inference_mode()
def _measure_cost(
    encoder: Encoder,
    lowered: Callable[[torch.Tensor], torch.Tensor],
    precision: str,
    tiles: ExampleTiles,
    size: int,
    file: Path,
) -> dict[str, Any]:
    batches = tqdm(tiles.read(size).split(_BATCH), f"Comparing {precision}", unit="batch")
    pairs = [(encoder(images), lowered(images)) for images in batches]
    expected, found = (torch.cat(embeddings).double() for embeddings in zip(*pairs, strict=True))
    if not torch.isfinite(found).all():
        raise UserError(
            f"{encoder.provenance.source} gives features that are not finite in {precision}, so "
            "nothing is written. Export it as float32."
        )
    cosines = functional.cosine_similarity(expected, found)  # (N,)
    return {
        "precision": precision,
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "n_tiles": len(cosines),
        "tiles": tiles.origin,
        "bytes": file.stat().st_size,
    }
