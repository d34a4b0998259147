"""Measures a student's exports on the CPU: tiles per second, size, and what a precision costs.

- PyTorch: the student as `load_encoder` gives it.
- ONNX, TorchScript: what `g2l export` writes, in each precision that it takes.
- int8 with convolutions: what `g2l export` refuses, by the quantiser's defaults; for a student
  that has nothing else to quantise.
- torchao int8: weights alone, if torchao can be imported.

All embed the same batches of tiles in memory and take turns. Ratios are taken within a round,
because a machine's speed changes, and reported as medians. The cosine is that of a tile's embedding
with PyTorch's; kNN accuracy (k = 20) is of a vote of the training tiles.

Run: python benchmarks/exports.py --model STUDENT [--tiles MANIFEST]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from g2l_plugin.demo.dataset import DemoTiles
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.invariance import fit_tile
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.knn import KNNVoting
from g2l_plugin.publishing.export.export import export_for
from g2l_plugin.publishing.export.precision import ExampleTiles
from g2l_plugin.publishing.export.student import load_student
from g2l_plugin.runs.model_names import find_source
from g2l_plugin.slides.image_set import find_images
from g2l_plugin.slides.image_source import WholeImages

Embed = Callable[[torch.Tensor], torch.Tensor]
"""Images in [0, 1] (B, 3, S, S) to embeddings (B, D)."""

Tiles = tuple[torch.Tensor, np.ndarray]
"""Images, uint8 (N, 3, S, S), and their classes."""

SPLITS = ("train", "test")


def read_demo(folder: Path, size: int, n: int) -> list[Tiles]:
    """Tiles of the generated cohort."""
    parts = []
    for split in SPLITS:
        tiles = DemoTiles(str(folder), split, size, min_purity=0.8, max_tiles=n)
        tiles.prepare_data()
        tiles.setup()
        images, labels, _ = zip(*(tiles[number] for number in range(len(tiles))), strict=True)
        parts.append((torch.stack(images), torch.stack(labels).numpy()))
    return parts


def read_manifest(manifest: Path, size: int, n: int) -> list[Tiles]:
    """Tiles of a manifest with the columns path, label and split, evenly spread over each split."""
    table = pd.read_csv(manifest)
    images = WholeImages(find_images(manifest))
    labels = pd.factorize(table["label"], sort=True)[0]
    parts = []
    for split in SPLITS:
        rows = np.flatnonzero(table["split"] == split)
        rows = rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]
        pixels = [fit_tile(images[row], size) for row in tqdm(rows, f"Reading {split}")]
        parts.append(((torch.stack(pixels) * 255).round().byte(), labels[rows]))
    return parts


def with_onnx(graph: Path, encoder: Encoder, threads: int) -> Embed:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, settings)

    def embed(images: torch.Tensor) -> torch.Tensor:
        normalized = ((images - encoder.mean) / encoder.std).numpy()
        return torch.from_numpy(session.run(None, {"images": normalized})[0])

    return embed


def with_torchao(encoder: Encoder) -> tuple[Embed, int]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized = copy.deepcopy(encoder)
    quantize_(quantized.model, Int8WeightOnlyConfig())
    saved = io.BytesIO()
    torch.save(quantized.state_dict(), saved)
    return quantized, saved.tell()


def find_ways(
    source: str, encoder: Encoder, tiles: ExampleTiles, folder: Path, threads: int
) -> dict[str, tuple[Embed, int]]:
    """Each way to embed tiles, and the bytes of its weights."""
    weights = sum(t.nbytes for t in encoder.model.state_dict().values())
    ways: dict[str, tuple[Embed, int]] = {"PyTorch float32": (encoder, weights)}
    for precision in ("float32", "float16", "int8"):
        out = folder / f"onnx_{precision}"
        name = f"ONNX {precision}"
        try:
            export_for(source, "onnx", out, precision=precision, tiles=tiles)
        except UserError as error:
            print(f"{name}: {error}")
            name += " with convolutions"
            out.mkdir()
            float32 = folder / "onnx_float32" / "model.onnx"
            # ONNX Runtime's integer convolution has unsigned weights.
            quantize_dynamic(float32, out / "model.onnx", weight_type=QuantType.QUInt8)
        graph = out / "model.onnx"
        ways[name] = (with_onnx(graph, encoder, threads), graph.stat().st_size)
    for precision in ("float32", "bfloat16"):
        out = folder / f"torchscript_{precision}"
        export_for(source, "torchscript", out, precision=precision, tiles=tiles)
        file = out / "torchscript_model.pt"
        ways[f"TorchScript {precision}"] = (torch.jit.load(file), file.stat().st_size)
    if importlib.util.find_spec("torchao"):
        ways["torchao int8 weights"] = with_torchao(encoder)
    return ways


@torch.inference_mode()
def embed_all(embed: Embed, images: torch.Tensor, batch_size: int, title: str = "") -> np.ndarray:
    batches = tqdm(images.split(batch_size), title, disable=not title, leave=False)
    return torch.cat([embed(batch / 255) for batch in batches]).float().numpy()


def knn_accuracy(found: list[np.ndarray], parts: list[Tiles]) -> float:
    train, test = (
        Embeddings(values, labels, np.array([f"{split}{n}" for n in range(len(labels))]))
        for split, values, (_, labels) in zip(SPLITS, found, parts, strict=True)
    )
    return KNNVoting(k=20, device="cpu").compute(train, test).values["KNNAccuracy"]


def cosines(found: np.ndarray, expected: np.ndarray) -> torch.Tensor:
    pair = (torch.from_numpy(values).double() for values in (found, expected))
    return torch.nn.functional.cosine_similarity(*pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="demo:teacher", help="student, as g2l export takes it")
    add("--tiles", type=Path, help="manifest with path, label and split; the demo's if not given")
    add("--n-tiles", type=int, default=1000, help="tiles of each split, for kNN")
    add("--timed", type=int, default=64, help="tiles of a turn")
    add("--batch-size", type=int, default=16)
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Once: each load of scratch:... has other weights.
        export_for(find_source(options.model), "timm", folder / "student")
        source = f"local-dir:{folder / 'student'}"
        student, encoder, _ = load_student(source)
        if options.tiles:
            parts = read_manifest(options.tiles, student.size, options.n_tiles)
        else:
            parts = read_demo(folder / "demo", student.size, options.n_tiles)
        timed = parts[1][0][: options.timed]
        tiles = ExampleTiles(lambda size: timed / 255, "this benchmark")
        ways = find_ways(source, encoder, tiles, folder, options.threads)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_number in tqdm(range(options.rounds + 1), "Rounds"):
            for way, (embed, _) in ways.items():
                start = time.perf_counter()
                embed_all(embed, timed, options.batch_size)
                if round_number:  # the first warms up
                    rates[way].append(len(timed) / (time.perf_counter() - start))
        found = {
            way: [embed_all(embed, images, options.batch_size, way) for images, _ in parts]
            for way, (embed, _) in ways.items()
        }
    sizes = " + ".join(f"{len(labels):,}" for _, labels in parts)
    table = Table(
        title=f"{student.architecture}, {options.threads} thread(s), batches of "
        f"{options.batch_size}, {options.rounds} rounds; {sizes} tiles of "
        f"{options.tiles.parent.name if options.tiles else 'the demo cohort'}"
    )
    for column in ("way", "tiles/s", "of PyTorch", "MB", "cosine", "smallest", "kNN accuracy"):
        table.add_column(column, justify="left" if column == "way" else "right")
    first = next(iter(ways))
    for way, (_, size) in ways.items():
        ratio = statistics.median(a / b for a, b in zip(rates[way], rates[first], strict=True))
        near = cosines(found[way][1], found[first][1])
        table.add_row(
            way,
            f"{statistics.median(rates[way]):.1f}",
            f"{ratio:.2f}",
            f"{size / 1e6:.1f}",
            f"{float(near.mean()):.5f}",
            f"{float(near.min()):.5f}",
            f"{knn_accuracy(found[way], parts):.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
