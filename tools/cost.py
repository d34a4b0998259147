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
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from g2l_plugin.config_files import load_config
from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.timm_network import create_timm

PRODUCT_SHARE = 658 / 989
"""Share of the nominal speed in a large matrix product in bfloat16, measured on an H200."""

STEP_SHARE = 0.61
"""Share of that product in a step with COMPILE=true and batches of 32, measured there too."""

TILES_PER_CORE = {"slides": 455, "packed": 1091}
"""Tiles/s that one core reads from slides of 0.25 µm/px: the table in docs/reading.md."""

BYTES_PER_WEIGHT = 12
"""A weight and AdamW's two moments in float32, as a checkpoint holds them."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The GPUs of a run.

    Attributes:
        gpu: Their name.
        n: Their number.
        tflops: Nominal dense bfloat16 speed of one GPU in TFLOP/s, as its maker states it.
        dollars: Assumed price of a GPU-hour.
    """

    gpu: str
    n: int
    tflops: float
    dollars: float


MACHINES = (
    Machine("H200", 1, 989, 3.5),
    Machine("RTX A6000", 3, 154.8, 0.8),
    Machine("H100", 8, 989, 2.5),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of the recipe that decide the costs.

    Attributes:
        teacher: Source of the teacher.
        student: Source of the student's initial weights.
        image_size: Side of a view, in pixels.
        steps: Maximum number of steps.
        step_tiles: Tiles in a step on one device.
        val_tiles: Tiles in a validation.
        val_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Maximum minutes between two checkpoints.
    """

    teacher: str
    student: str
    image_size: int
    steps: int
    step_tiles: int
    val_tiles: int
    val_every: int
    checkpoint_every: int
    checkpoint_minutes: int


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture, counted.

    Attributes:
        parameters: Number of weights.
        features: Width of an embedding.
        flops: Floating-point operations of the forward pass of one image.
    """

    parameters: int
    features: int
    flops: int


def read_recipe() -> Recipe:
    """Picks the settings that decide the costs."""
    config = load_config("g2l_breast")
    trainer, model, data = (config[part]["init_args"] for part in ("trainer", "model", "data"))
    (checkpoint,) = (
        callback["init_args"]
        for callback in trainer["callbacks"]
        if callback["class_path"] == "g2l_plugin.RunCheckpoint"
    )
    return Recipe(
        teacher=model["teacher"]["source"],
        student=model["student"]["source"],
        image_size=int(model["view"]["init_args"]["size"]),
        steps=int(trainer["max_steps"]),
        step_tiles=int(data["dataloaders"]["train"]["batch_size"]),
        val_tiles=int(data["datasets"]["train"]["init_args"]["n_val_tiles"]),
        val_every=int(trainer["val_check_interval"]),
        checkpoint_every=int(checkpoint["every_n_train_steps"]),
        checkpoint_minutes=int(checkpoint["every_minutes"]),
    )


def count_network(source: str, image_size: int) -> Network:
    """Counts a known encoder on the meta device, without memory for its weights."""
    known = find_known(source)
    if known is None:
        raise SystemExit(f"Unknown encoder {source!r}. Give one that `g2l models` lists.")
    with torch.device("meta"):
        model: Any = create_timm(
            known.architecture, source, None, torch.float32, dict(known.model_kwargs)
        ).eval()
        image = torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Network(parameters, model.num_features, counter.get_total_flops())


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
    teacher, student = (
        count_network(source, recipe.image_size) for source in (recipe.teacher, recipe.student)
    )
    flops = teacher.flops + 3 * student.flops
    cached = 3 * student.flops
    share = STEP_SHARE
    of_share = "the step alone with COMPILE=true, measured on an H200: [speed](training.md#speed)"
    if options.training is not None:
        share, of_share = read_share(options.training)
    tiles = options.slides * options.tiles_per_slide
    rows = []
    for machine in MACHINES:
        speed = machine.n * machine.tflops * 1e12 * PRODUCT_SHARE * share
        rate = speed / flops
        hours, hours_cached = tiles / rate / 3600, tiles * cached / speed / 3600
        price = options.price.get(machine.gpu, machine.dollars)
        cores = {name: rate / each for name, each in TILES_PER_CORE.items()}
        rows.append(
            f"| {machine.n} x {machine.gpu} | {rate:,.0f} | {hours:,.1f} | {hours_cached:,.1f} "
            f"| {cores['slides']:,.1f} | {cores['packed']:,.1f} | {price:.2f} "
            f"| {hours * machine.n * price:,.0f} |"
        )
    weights = student.parameters + (student.features + 1) * teacher.features
    checkpoint = weights * BYTES_PER_WEIGHT
    disk = {
        f"{options.slides:,} slides of {options.gb_per_slide:g} GB": options.slides
        * options.gb_per_slide
        * 1e9,
        f"tiles packed as JPEG, {options.kb_per_tile:g} kB each (optional)": tiles
        * options.kb_per_tile
        * 1e3,
        "three checkpoints (two kept, one being written)": 3 * checkpoint,
        "last.ckpt": checkpoint,
        "the published student": 4 * student.parameters,
        f"the teacher's weights, {teacher.parameters / 1e6:,.1f} M in float32": 4
        * teacher.parameters,
        "the teacher's embeddings of one view of each tile, bfloat16 (optional)": tiles
        * teacher.features
        * 2,
    }
    fastest = max(machine.tflops for machine in MACHINES) * 1e12 * PRODUCT_SHARE * share / flops
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
        "| disk | GB |",
        "|---|---|",
        *(f"| {name} | {size / 1e9:,.1f} |" for name, size in disk.items()),
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
    parser.add_argument("--tiles-per-slide", type=int, default=7500)
    parser.add_argument("--gb-per-slide", type=float, default=1.0)
    parser.add_argument("--kb-per-tile", type=float, default=25.0)
    parser.add_argument("--gb-per-second", type=float, default=1.0, help="speed of the disk")
    parser.add_argument(
        "--price", type=parse_price, action="append", default=[], metavar="GPU=DOLLARS"
    )
    options = parser.parse_args(arguments)
    options.price = dict(options.price)
    print(page(options), end="")


if __name__ == "__main__":
    main()
