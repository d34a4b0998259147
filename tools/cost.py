"""Computes what a run costs in hours, disk space and money, as the page docs/cost.md.

A tile costs the teacher's forward pass and three times the student's, counted on the architectures.
A device computes at its nominal speed, times the share of it reached in a large matrix product,
times the share of that product reached in training.

The share reached in training is that of the step alone (`benchmarks/step.py`, docs/training.md),
unless --training gives the results of `benchmarks/training.py` on a GPU. Prices, slide sizes and
the speed of other GPUs in a matrix product are assumed; the options change them.

Run: python tools/cost.py > docs/cost.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from g2l_plugin.config_files import load_config
from g2l_plugin.planning import disk
from g2l_plugin.planning.gpus import GPUS, Gpu
from g2l_plugin.planning.plan import describe_networks
from g2l_plugin.planning.speed import COMPILED_SHARE, PRODUCT_SHARE, step_flops, tiles_per_second
from g2l_plugin.planning.weightless import build_weightless, read_module

CONFIG = "g2l_breast"
"""The config of the run."""

TILES_PER_CORE = {"slides": 665, "packed": 1321}
"""Tiles/s that one core reads from slides of 0.25 µm/px: the table in docs/reading.md."""

MACHINES: tuple[tuple[Gpu, int], ...] = (
    (GPUS["h200-141"], 1),
    (GPUS["a6000-48"], 3),
    (GPUS["h100-80"], 8),
)
"""GPUs of a run: their kind and number."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of the recipe that decide the costs.

    Attributes:
        steps: Maximum number of steps.
        step_tiles: Tiles in a step on one device.
        val_tiles: Tiles in a validation.
        val_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Maximum minutes between two checkpoints.
    """

    steps: int
    step_tiles: int
    val_tiles: int
    val_every: int
    checkpoint_every: int
    checkpoint_minutes: int


def read_recipe() -> Recipe:
    """Picks the settings that decide the costs."""
    config = load_config(CONFIG)
    trainer, data = (config[part]["init_args"] for part in ("trainer", "data"))
    (checkpoint,) = (
        callback["init_args"]
        for callback in trainer["callbacks"]
        if callback["class_path"] == "g2l_plugin.RunCheckpoint"
    )
    return Recipe(
        steps=int(trainer["max_steps"]),
        step_tiles=int(data["dataloaders"]["train"]["batch_size"]),
        val_tiles=int(data["datasets"]["train"]["init_args"]["n_val_tiles"]),
        val_every=int(trainer["val_check_interval"]),
        checkpoint_every=int(checkpoint["every_n_train_steps"]),
        checkpoint_minutes=int(checkpoint["every_minutes"]),
    )


def read_share(path: Path) -> tuple[float, str]:
    """Reads the best share of the limit that `eva fit` reached, and on what."""
    results = json.loads(path.read_text())
    best = max(
        (found["ways"]["eva"]["of_limit"][1], found["batch_size"])
        for found in results["comparisons"]
        if found["ways"].get("eva")
    )
    return best[0], f"measured on {results['device']} at batches of {best[1]}"


def page(options: argparse.Namespace) -> str:
    """Writes the page in Markdown."""
    recipe = read_recipe()
    module = read_module(CONFIG)
    build_weightless(module)
    (teacher,), student, weights = describe_networks(module)
    flops, cached = step_flops(teacher.flops, student.flops), step_flops(0, student.flops)
    share = COMPILED_SHARE
    of_share = "the step alone with COMPILE=true, measured on an H200: [speed](training.md#speed)"
    if options.training is not None:
        share, of_share = read_share(options.training)
    tiles = options.slides * options.tiles_per_slide
    rows = []
    for gpu, n in MACHINES:
        rate = n * tiles_per_second(gpu.tflops, flops, share)
        hours = tiles / rate / 3600
        hours_cached = hours * cached / flops
        price = options.price.get(gpu.name, gpu.dollars)
        cores = {name: rate / each for name, each in TILES_PER_CORE.items()}
        rows.append(
            f"| {n} x {gpu.name} | {rate:,.0f} | {hours:,.1f} | {hours_cached:,.1f} "
            f"| {cores['slides']:,.1f} | {cores['packed']:,.1f} | {price:.2f} "
            f"| {hours * n * price:,.0f} |"
        )
    checkpoint = disk.checkpoint(weights)
    sizes = {
        f"{options.slides:,} slides of {options.gb_per_slide:g} GB": options.slides
        * options.gb_per_slide
        * 1e9,
        f"tiles packed as JPEG, {options.kb_per_tile:g} kB each (optional)": tiles
        * options.kb_per_tile
        * 1e3,
        "three checkpoints (two kept, one being written)": 3 * checkpoint,
        "last.ckpt": checkpoint,
        "the published student": disk.weights(student.parameters),
        f"the teacher's weights, {teacher.parameters / 1e6:,.1f} M in float32": disk.weights(
            teacher.parameters
        ),
        "the teacher's embeddings of one view of each tile, bfloat16 (optional)": disk.embeddings(
            tiles, teacher.features
        ),
    }
    fastest = max(tiles_per_second(gpu.tflops, flops, share) for gpu, _ in MACHINES)
    of_pass = recipe.steps * recipe.step_tiles / tiles
    between = min(
        60 * recipe.checkpoint_minutes, recipe.checkpoint_every * recipe.step_tiles / fastest
    )
    writing = checkpoint / (options.gb_per_second * 1e9)
    # The teacher embeds the validation tiles once in a run.
    validating = recipe.val_tiles * student.flops / flops
    validating /= recipe.val_every * recipe.step_tiles
    lines = [
        "# What a breast run costs",
        "",
        "Written by `python tools/cost.py > docs/cost.md`; its options change the assumptions.",
        "",
        f"{options.slides:,} slides of {options.tiles_per_slide:,} tiles are {tiles / 1e6:,.1f} M "
        f"tiles. A tile costs {flops / 1e9:,.1f} GFLOP, counted: the teacher's forward pass "
        f"({teacher.flops / 1e9:,.1f}) and three times the student's "
        f"({student.flops / 1e9:,.1f}). A device reaches {PRODUCT_SHARE:.0%} of its "
        "nominal speed in a large matrix product (658 of 989 TFLOP/s, measured on an H200 and "
        f"assumed for the others), and training {share:.0%} of that ({of_share}).",
        "",
        "One pass over all tiles:",
        "",
        "| GPUs | tiles/s | hours | hours, teacher cached | cores to read slides "
        "| cores to read packed tiles | $ per GPU-hour | $ |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"The recipe's maximum, {recipe.steps:,} steps of {recipe.step_tiles} tiles, is "
        f"{of_pass:.0%} of a pass on one device; its early stop may end a run sooner. Prices and "
        "the sizes of slides and packed tiles are assumed. Several devices are assumed to lose no "
        f"time: the gradients of a step, {4 * weights / 1e9:.1f} GB, are sent during the backward "
        "pass. The tiles that a core reads [are measured](reading.md#how-fast).",
        "",
        f"These hours leave out checkpoints, {writing / between:.1%} (every "
        f"{recipe.checkpoint_every:,} steps or {recipe.checkpoint_minutes} minutes, to a disk with "
        f"an assumed {options.gb_per_second:g} GB/s), and validation, {validating:.1%} "
        f"({recipe.val_tiles:,} tiles every {recipe.val_every} steps). Both shares are for the "
        f"fastest device with batches of {recipe.step_tiles}; larger batches make them smaller.",
        "",
        "`g2l plan` says the same of your networks, batch, GPUs and slides, and whether a step "
        "fits into their memory: [what a run needs](doctor.md#before-a-gpu-is-rented).",
        "",
        "| disk | GB |",
        "|---|---|",
        *(f"| {name} | {size / 1e9:,.1f} |" for name, size in sizes.items()),
    ]
    return "\n".join(lines) + "\n"


def parse_price(text: str) -> tuple[str, float]:
    """Parses GPU=DOLLARS."""
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--training", type=Path, help="results of benchmarks/training.py on a GPU")
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--tiles-per-slide", type=int, default=disk.TILES_PER_SLIDE)
    parser.add_argument("--gb-per-slide", type=float, default=disk.SLIDE / 1e9)
    parser.add_argument("--kb-per-tile", type=float, default=disk.PACKED_TILE / 1e3)
    parser.add_argument("--gb-per-second", type=float, default=1.0, help="speed of the disk")
    parser.add_argument(
        "--price", type=parse_price, action="append", default=[], metavar="GPU=DOLLARS"
    )
    options = parser.parse_args(arguments)
    options.price = dict(options.price)
    print(page(options), end="")


if __name__ == "__main__":
    main()
