"""Measures tiles per second from a slide to its embeddings, next to a plain loop.

- ours: the path of `g2l embed`: data workers decode tiles, this process runs the model.
- plain: one process that reads a tile with OpenSlide's `read_region`, and embeds it with the same
  model once a batch is full.
- model alone: the limit. The same batches of tiles, in memory.
- LazySlide and TRIDENT (`--tools lazyslide=PYTHON trident=PYTHON`, the Pythons of their
  environments): their extraction of features with the model as `g2l export` writes it, on the tiles
  that they find, in one process and on one thread, as the others are with `--workers 0` and
  OMP_NUM_THREADS=1.

All but these embed the same tiles of one slide with the same model and batches, and take turns,
a whole slide each. Ratios are taken within a round, because a machine's speed changes, and reported
as medians. The slide is indexed once, before, and that is not measured.

Run: python benchmarks/embedding.py --slides DIR [--tools lazyslide=envs/lazyslide/bin/python]
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile
import timm
import torch
from cohorts import find_slides, make_full_size
from rich.console import Console
from rich.table import Table

from g2l_plugin.embedding.model import TileModel
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.publishing.export.export import export_for
from g2l_plugin.runs.model_names import find_source
from g2l_plugin.slides.in_order import read_in_order
from g2l_plugin.slides.index import SlideIndex
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.tile_grid import TileGrid

_IN_OTHER_TOOLS = Path(__file__).parents[1] / "tests" / "reach" / "whole_slides.py"


def embed_ours(slide: SlideIndex, model: TileModel, batch_size: int, workers: int) -> np.ndarray:
    size = (model.tile_size, model.tile_size)
    tiles = SlideTiles([slide], size)
    blocks = np.split(np.arange(len(tiles)), range(batch_size, len(tiles), batch_size))
    batches = read_in_order(tiles, size, blocks, workers)
    return torch.cat([model.embed(batch) for _, batch in batches]).cpu().numpy()


def embed_plain(slide: SlideIndex, model: TileModel, batch_size: int) -> np.ndarray:
    embeddings, waiting = [], []
    size = (model.tile_size, model.tile_size)
    with openslide.OpenSlide(str(slide.path)) as handle:
        for x, y in slide.xy.tolist():
            region = handle.read_region((x, y), slide.plan.level, slide.plan.read_size)
            tile = np.asarray(region.convert("RGB").resize(size))
            waiting.append(torch.from_numpy(tile.copy()).permute(2, 0, 1))
            if len(waiting) == batch_size:
                embeddings.append(model.embed(torch.stack(waiting)))
                waiting = []
    if waiting:
        embeddings.append(model.embed(torch.stack(waiting)))
    return torch.cat(embeddings).cpu().numpy()


def embed_in_memory(batches: list[torch.Tensor], model: TileModel) -> np.ndarray:
    return torch.cat([model.embed(batch) for batch in batches]).cpu().numpy()


def time_tiles(embed: Callable[[], np.ndarray]) -> float:
    """Tiles per second."""
    start = time.perf_counter()
    n_tiles = len(embed())
    return n_tiles / (time.perf_counter() - start)


def time_tool(tool: str, python: str, exported: Path, slide: Path, batch_size: int) -> float:
    """Tiles per second of another tool, once it has embedded the slide before."""
    options = json.dumps({"batch_size": batch_size})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        command = [python, _IN_OTHER_TOOLS, tool, exported, slide, out, options]
        # Without this package's own entry point: the tool's environment may have another of it.
        environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        subprocess.run(command, check=True, env=environment)
        found = np.load(out)
        return len(found["features"]) / float(found["seconds"])


def write_mosaic(source: Path, folder: Path, times: int, mpp: float) -> Path:
    """Writes a slide of so many by so many repeats of another, in JPEG, at a stated resolution."""
    with openslide.OpenSlide(str(source)) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    pixels = np.tile(image, (times, times, 1))
    folder.mkdir()
    with tifffile.TiffWriter(folder / "mosaic.tiff") as writer:
        for step in (1, 4, 16):
            writer.write(
                pixels[::step, ::step],
                tile=(240, 240),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80},
                subfiletype=int(step > 1),
                resolution=(1e4 / mpp / step,) * 2,
                resolutionunit="CENTIMETER",
            )
    return folder


def save_one_block(folder: Path) -> str:
    """Saves one block of a small ViT, with random weights; returns its source."""
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 64, "num_heads": 2, "num_classes": 0}
    network = timm.create_model("vit_tiny_patch16_224", **options)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--slides", type=Path, default=os.environ.get("G2L_SLIDES"), help="the first is embedded")
    add("--model", default="demo:teacher", help="or one-block, of a small ViT")
    add("--tile-size", type=int, default=56)
    add("--overwrite-mpp", type=float, default=0.5)
    add("--full-size", action="store_true", help="a slide as large as a scanner's")
    add("--mosaic", type=int, metavar="N", help="N x N repeats of the slide, at --overwrite-mpp")
    add("--max-tiles", type=int, default=4096)
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, default=usable_cpus())
    add("--accelerator", default="auto")
    add("--precision", default="32-true")
    add("--rounds", type=int, default=5)
    add("--tools", nargs="*", default=[], metavar="TOOL=PYTHON", help="lazyslide, trident")
    options = parser.parse_args()
    tools = dict(part.split("=") for part in options.tools)
    size = options.tile_size
    grid = TileGrid(size, size, overwrite_mpp=options.overwrite_mpp, min_sharpness=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one_block = options.model == "one-block"
        named = save_one_block(folder / "one_block") if one_block else find_source(options.model)
        source = EncoderSource(named)
        model = TileModel(source, grid, options.precision, options.accelerator)
        slides = find_slides(options.slides, folder / "demo")
        if options.full_size:
            slides = find_slides(make_full_size(options.slides, folder / "full"), folder / "demo")
        if options.mosaic:
            mosaic = (folder / "mosaic", options.mosaic, options.overwrite_mpp)
            slides = find_slides(write_mosaic(slides[0], *mosaic), folder / "demo")
        index = build_index(folder / "index", grid, slides[0].parent, [slides[0].name])
        assert index is not None
        (whole,) = index.load()
        slide = SlideIndex(whole.path, whole.plan, whole.xy[: options.max_tiles], whole.bytes)
        tiles, blocks = SlideTiles([slide], (size, size)), []
        for start in range(0, len(tiles), options.batch_size):
            numbers = range(start, min(start + options.batch_size, len(tiles)))
            blocks.append(torch.stack([tiles.read(number) for number in numbers]))
        ways: dict[str, Callable[[], float]] = {
            "ours": lambda: time_tiles(
                lambda: embed_ours(slide, model, options.batch_size, options.workers)
            ),
            "plain": lambda: time_tiles(lambda: embed_plain(slide, model, options.batch_size)),
            "model alone": lambda: time_tiles(lambda: embed_in_memory(blocks, model)),
        }
        for tool, python in tools.items():
            exported = export_for(source.source, tool, folder / tool, mpp=0.5).folder
            ways[tool] = functools.partial(
                time_tool, tool, python, exported, slides[0], options.batch_size
            )
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(options.rounds + 1):
            for name, measure in ways.items():
                rate = measure()
                if round_number:  # the first warms up
                    rates[name].append(rate)
    reader = index.records[0].reader
    table = Table(
        title=f"Tiles/s, {len(slide.xy):,} tiles of {slides[0].name} ({reader}), {options.model}, "
        f"{options.workers} workers, {options.rounds} rounds"
    )
    others = ["plain", "model alone", *tools]
    for column in ("way", "median", "min to max", *(f"of {name}" for name in others)):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, values in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(values, rates[other], strict=True))
            for other in others
        ]
        table.add_row(
            name,
            f"{statistics.median(values):.0f}",
            f"{min(values):.0f} to {max(values):.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
