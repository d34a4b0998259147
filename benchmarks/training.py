"""Measures how many tiles per second are distilled, next to the alternatives.

- eva fit: what a user runs, `eva fit` with `configs/g2l_breast.yaml` and tiles from slides; with
  --compile also with `COMPILE=true`.
- bare loop: the same step in plain PyTorch, with tiles already on the device; with --compile also
  compiled.
- timm: its `FeatureDistillationTask` in the same loop. It compares embeddings by their squared
  error after a linear projector, without batch norm; its classification loss has weight 0.
- LightlyTrain: its `pretrain`, method `distillation`, with tiles as JPEG files. It also compares
  patch tokens, mixes images, makes its own, stronger views in its data workers, and uses an unfused
  AdamW.

Networks (with random weights), image size, batch size, precision and data workers are the same. On
a CPU, data workers have cores to themselves, as they have next to a GPU. If --threads equals the
number of cores, the ways that read tiles lose time of the step to it.

Each way is a process. On a CPU, the ways take turns of --steps steps and are stopped in between; on
a GPU, whose memory holds one of them, each is started again in each round. Ratios are taken within
a round, because a machine's speed changes, and reported as medians over the rounds, with the middle
half in brackets. GB is the peak memory: of the device on CUDA, otherwise of the process without its
workers. The measured steps contain no checkpoints and no validation.

The limit is the device's speed in a large matrix product of the same precision, measured in turn
with the ways. FLOPs are those of the teacher's forward pass and three times the student's. The
parts of a step are measured separately, so that the clock does not slow the other measurements.

On a GPU a way starts in about half a minute and is measured for 8,192 tiles: with the defaults and
--compile, eight processes, that is less than ten minutes at 300 tiles/s. Other batches are compared
by `step.py`, without reading.

Run: python benchmarks/training.py --json DIR/training.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from cohorts import add_arguments, make_training_cohort, write_images, write_tiles
from rich.console import Console
from rich.table import Table
from turns import IMAGE_SIZE, Failed, Network, Settings, Way, take_turns
from ways import HERE, eva_command, product_side

from g2l_plugin.encoders.known import find_known
from g2l_plugin.files import write_text

PAPER = {"teacher": "hf-hub:bioptimus/H-optimus-0", "student": "hf-hub:histai/hibou-L"}
SMALL = {"teacher": "vit_small_patch16_224", "student": "vit_tiny_patch16_224"}
LABELS = {
    "eva": "eva fit",
    "eva_compiled": "eva fit, COMPILE=true",
    "bare": "bare loop",
    "compiled": "compiled",
    "timm": "timm",
    "lightly": "LightlyTrain",
    "loader": "loader alone",
}
"""Names of the ways in the table; `limit` is not a row of it."""


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, end)
    names = choose_ways(options)
    networks = {name: find_network(getattr(options, name)) for name in ("teacher", "student")}
    described = {name: network.describe() for name, network in networks.items()}
    flops = described["teacher"]["flops"] + 3 * described["student"]["flops"]
    on_cuda = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_cuda else f"CPU, {options.threads} threads"
    for name, network in described.items():
        print(
            f"{name}: {network['source']}, {network['parameters'] / 1e6:,.1f} M parameters, "
            f"{network['flops'] / 1e9:,.1f} GFLOP per tile"
        )
    print(f"device:  {device}; {options.workers} data workers")
    results: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "precision": options.precision,
        "teacher_dtype": options.teacher_dtype,
        "data_workers": options.workers,
        "networks": described,
        "flops_per_tile": flops,
        "comparisons": [],
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        files = prepare_files(options, folder)
        for batch_size in options.batch_size:
            warm_up, steps = choose_steps(options, batch_size)
            settings = Settings(
                **networks,
                **files,
                batch_size=batch_size,
                warm_up=warm_up,
                steps=steps,
                precision=options.precision,
                teacher_dtype=options.teacher_dtype,
                device=options.device,
                threads=options.threads,
                workers=options.workers,
            )
            results["comparisons"].append(
                compare(names, settings, options, folder / f"{batch_size}", flops)
            )
            if options.json is not None:  # after each, in case the script is stopped early
                write_text(options.json, json.dumps(results, indent=2) + "\n")


def compare(
    names: list[str], settings: Settings, options: argparse.Namespace, folder: Path, flops: int
) -> dict[str, Any]:
    """Measures and prints one comparison."""
    ways = make_ways([*names, "parts"], settings, options.lightly_python, folder)
    parts = ways.pop("parts")
    windows = take_turns(ways, options.rounds, settings.on_cuda)
    found = summarise(windows, settings.batch_size, flops, 2 * product_side(settings.device) ** 3)
    rounds = f"{options.rounds} rounds of {settings.steps} steps"
    title = f"Batches of {settings.batch_size}, {settings.precision}, {rounds}"
    print_speeds(found, flops, title)
    try:
        found["bare_parts"] = parts.finish()
    except Failed as failure:
        print(f"parts failed: {failure}")
    else:
        print_parts(found["bare_parts"], "The bare loop, each part measured separately")
    for name in ("eva", "eva_compiled"):
        if windows.get(name):
            found[f"{name}_parts"] = host_parts(windows[name])
            print_parts(found[f"{name}_parts"], f"{LABELS[name]}, time of the host")
    return found


def make_ways(
    names: list[str], settings: Settings, lightly_python: str, folder: Path
) -> dict[str, Way]:
    """The processes to compare, not started yet."""
    folder.mkdir()
    common = settings.write(folder / "settings.json") | {
        # Keep memory, as CUDA does: otherwise each large tensor costs page faults, in some ways
        # more than in others.
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache"),
    }
    ways = {}
    for name in names:
        command = [sys.executable, str(HERE / "ways.py"), name]
        environment = common
        if name.startswith("eva"):
            (folder / name).mkdir()
            command, variables = eva_command(settings, folder / name)
            compiled = str(name == "eva_compiled").lower()
            environment = common | variables | {"COMPILE": compiled}
        elif name == "lightly":
            command = [lightly_python, str(HERE / "lightly_way.py")]
        ways[name] = Way(command, folder / name, environment)
    return ways


def choose_ways(options: argparse.Namespace) -> list[str]:
    """Chooses what to measure; prints why LightlyTrain is left out, if it is."""
    compiled = {"eva_compiled", "compiled"} if options.compile else set()
    ways = [way for way in (*LABELS, "limit") if way in compiled or "compiled" not in way]
    python = shutil.which(options.lightly_python)
    find = "import importlib.util as i; raise SystemExit(i.find_spec('lightly_train') is None)"
    if python is not None and subprocess.run([python, "-c", find]).returncode == 0:
        options.lightly_python = os.path.abspath(python)
    else:
        print(
            f"LightlyTrain is left out: {options.lightly_python} does not have it. Run "
            "`pip install lightly-train timm` in a new environment and give its Python as "
            "--lightly-python."
        )
        ways.remove("lightly")
    return [way for way in ways if way not in options.leave_out]


def prepare_files(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes slides, their index, tiles and images; returns the `Settings` that name them."""
    # Enough tiles that no epoch ends while steps are measured: with 1,000 slides that is rare.
    n_tiles = 0
    for batch_size in options.batch_size:
        warm_up, steps = choose_steps(options, batch_size)
        n_steps = warm_up + steps * (options.rounds if options.device == "cpu" else 1)
        n_tiles = max(n_tiles, batch_size * (n_steps + 4))
    data = make_training_cohort(
        folder, options.slides, options.full_size, options.overwrite_mpp, n_tiles
    )
    tiles, images = folder / "tiles.npy", folder / "images"
    write_tiles(data, 2 * max(options.batch_size), tiles)
    write_images(tiles, images, n_tiles)
    return {"data": data, "tiles": str(tiles), "images": str(images)}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--teacher", help="a timm model, or a source listed by `g2l models`")
    parser.add_argument("--student", help="likewise; on CUDA, the paper's by default")
    parser.add_argument("--batch-size", type=int, nargs="+")
    parser.add_argument(
        "--steps", type=int, help="per turn; on CUDA by default 8,192 tiles, but at least 10 steps"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        help="steps before the first turn; by default a quarter of --steps, but at least 2",
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--teacher-dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="also measure what is compiled")
    parser.add_argument("--threads", type=int, help="PyTorch's")
    parser.add_argument("--workers", type=int, help="data workers")
    parser.add_argument(
        "--leave-out", choices=("eva", "timm", "lightly"), nargs="+", default=[], metavar="WAY"
    )
    parser.add_argument(
        "--lightly-python", default=sys.executable, help="a Python that has lightly_train"
    )
    add_arguments(parser)
    parser.add_argument(
        "--full-size",
        action=argparse.BooleanOptionalAction,
        help="use one slide as large as a scanner's, 1 GB; the default on CUDA",
    )
    parser.add_argument("--folder", type=Path, help="where to keep slides and tiles during the run")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = options.device == "cuda"
    defaults = {
        **(PAPER if on_cuda else SMALL),
        "batch_size": [32],
        "rounds": 1 if on_cuda else 12,
        "precision": "bf16-mixed" if on_cuda else "32-true",
        "workers": min(16, os.cpu_count() or 1) if on_cuda else 1,
        "full_size": on_cuda,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.threads is None:
        options.threads = choose_threads(on_cuda, options.workers)
    if options.teacher_dtype is None:
        options.teacher_dtype = "bfloat16" if options.precision == "bf16-mixed" else "float32"
    return options


def choose_threads(on_cuda: bool, workers: int) -> int:
    """PyTorch's threads; on a CPU, one core is kept free for each data worker."""
    cores = os.cpu_count() or 1
    return cores if on_cuda else max(1, cores - workers)


def choose_steps(options: argparse.Namespace, batch_size: int) -> tuple[int, int]:
    """Steps of the warm-up and of a turn; on CUDA a turn is longer than what workers read ahead."""
    steps = options.steps or (1 if options.device == "cpu" else max(10, 8192 // batch_size))
    return options.warm_up or max(2, steps // 4), steps


def find_network(name: str) -> Network:
    """Finds a network in timm or among the known encoders."""
    if ":" not in name:
        if not timm.is_model(name):
            raise SystemExit(f"timm has no model {name!r}. Give one that timm.list_models() lists.")
        config = timm.get_pretrained_cfg(name)
        fits = config is not None and config.input_size[-1] == IMAGE_SIZE
        kwargs: dict[str, Any] = {} if fits else {"img_size": IMAGE_SIZE}
        return Network(f"timm:{name}", kwargs, name, kwargs)
    known = find_known(name)
    if known is None:
        raise SystemExit(f"Unknown network {name!r}. Give a timm model or one of `g2l models`.")
    return Network(name, {}, known.architecture, dict(known.model_kwargs))


def summarise(
    windows: dict[str, list[dict[str, Any]]], batch_size: int, flops: int, product_flops: int
) -> dict[str, Any]:
    """Computes tiles/s of each way and round, and its ratios to the bare loop and to the limit.

    Args:
        windows: What each way's clock has written, one per round; empty if the way failed.
        batch_size: Tiles in a step.
        flops: Floating-point operations per tile.
        product_flops: Floating-point operations of the matrix product.
    """
    per_second = {
        name: [window["steps"] / window["seconds"] for window in rounds]
        for name, rounds in windows.items()
    }
    limit = [rate * product_flops for rate in per_second.pop("limit")]
    bare = per_second["bare"]
    ways: dict[str, Any] = {}
    for name, rates in per_second.items():
        if not rates:
            ways[name] = None
            continue
        tiles = [rate * batch_size for rate in rates]
        found: dict[str, Any] = {
            "tiles_per_second": tiles,  # one per round
            "median": statistics.median(tiles),
            "peak_memory_bytes": max(window["peak_memory_bytes"] for window in windows[name]),
        }
        if name != "loader":
            found["of_bare"] = ratio_quartiles(rates, bare)
            found["of_limit"] = ratio_quartiles([rate * flops for rate in tiles], limit)
        ways[name] = found
    return {"batch_size": batch_size, "limit_flops_per_second": limit, "ways": ways}


def host_parts(windows: list[dict[str, Any]]) -> dict[str, float]:
    """Host's seconds per step, by part: medians over the windows of `eva fit`."""
    parts: dict[str, list[float]] = {}
    for window in windows:
        seconds = dict(window["host_seconds"])
        seconds["Lightning and the rest"] = window["seconds"] - sum(seconds.values())
        for name, value in seconds.items():
            parts.setdefault(name, []).append(value / window["steps"])
    return {name: statistics.median(values) for name, values in parts.items()}


def print_speeds(found: dict[str, Any], flops: int, title: str) -> None:
    """Prints tiles/s of each way, and the limit; in brackets the middle half of the rounds."""
    table = Table(title=title)
    for column in ("way", "tiles/s", "min to max", "of bare loop", "of limit", "GB"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, way in found["ways"].items():
        if name == "loader":
            table.add_section()
        if way is None:
            table.add_row(LABELS[name], "failed")
            continue
        rates = way["tiles_per_second"]
        table.add_row(
            LABELS[name],
            _number(way["median"]),
            f"{_number(min(rates))} to {_number(max(rates))}",
            share_text(way.get("of_bare"), spread=True),
            share_text(way.get("of_limit")),
            f"{way['peak_memory_bytes'] / 1e9:.1f}",
        )
    if limit := found["limit_flops_per_second"]:
        middle = statistics.median(limit)
        low, high = min(limit) / 1e12, max(limit) / 1e12
        table.caption = (
            f"limit: {middle / 1e12:.3g} TFLOP/s ({low:.3g} to {high:.3g}) in a matrix product, "
            f"{flops / 1e9:,.1f} GFLOP per tile: {_number(middle / flops)} tiles/s"
        )
    Console().print(table)


def print_parts(parts: dict[str, float], title: str) -> None:
    """Prints how a step's time splits into parts."""
    table = Table(title=title)
    for column in ("part", "ms per step", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(parts.values())
    for name, seconds in parts.items():
        table.add_row(name, f"{1000 * seconds:,.1f}", f"{seconds / total:.1%}")
    Console().print(table)


def ratio_quartiles(values: list[float], others: list[float]) -> list[float] | None:
    """Quartiles of the ratios within a round; None if the other way failed."""
    if not others:
        return None
    ratios = [a / b for a, b in zip(values, others, strict=True)]
    return np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()


def share_text(quartiles: list[float] | None, spread: bool = False) -> str:
    """The median; with `spread`, the middle half in brackets too."""
    if quartiles is None:
        return ""
    low, middle, high = quartiles
    return f"{middle:.3f}" + (f" ({low:.2f}-{high:.2f})" if spread else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def end(*_: Any) -> None:
    """Exits as an error would, so that no process is left running."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


if __name__ == "__main__":
    main()
