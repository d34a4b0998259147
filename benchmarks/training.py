"""Measures how many tiles a second are distilled, side by side with what else would do it.

- eva fit: the whole way of a user, `eva fit` with `configs/g2l_breast.yaml`, tiles from slides.
- bare loop: the same step in plain PyTorch, tiles on the device already; compiled too, where asked.
- timm: its `FeatureDistillationTask`, in the same loop. It compares the embeddings by their squared
  error behind a linear projector, without batch norm; its classification loss has no weight.
- LightlyTrain: its `pretrain`, method `distillation`, with tiles as JPEG files. It compares patch
  tokens too, mixes images, makes its own views, which are stronger, in its data workers, and
  has AdamW unfused.

Networks, with random weights, image size, batch size, precision and data workers are the same. On a
CPU the data workers have cores of their own, as beside a GPU: with --threads as many as there are
cores, reading takes time from the step, in the ways that read.

Each way is a process of its own. On a CPU they take turns of --steps steps and are stopped
meanwhile; on a GPU, whose memory holds one, each is started anew in each round. Ratios are medians
over the rounds of those within a round, since a machine's speed changes; in brackets is the middle
half of them. GB are the device's on CUDA, else the process's without its workers, at most.
Checkpoints and validation are not in the steps that are measured.

The limit is what the device reaches in a large matrix product of the same precision, by turns with
the rest; FLOPs are those of the teacher's forward pass and three of the student's. Where the time
goes is measured apart, so that nothing waits for the clock otherwise.

Run: python benchmarks/training.py --json DIR/training.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from training_data import dataset_options, make_slides, write_images, write_tiles
from training_eva import eva_command
from training_loops import product_side
from training_options import IMAGE_SIZE, choose_steps, describe_network, parse_options
from training_settings import Settings
from training_tables import host_parts, print_parts, print_speeds, summarise
from training_turns import Failed, Way, take_turns

from g2l_plugin.files import write_text

HERE = Path(__file__).parent


def choose_ways(options: argparse.Namespace) -> list[str]:
    """What to measure; says what is left out."""
    ways = ["eva", "bare", "compiled", "timm", "lightly", "loader", "limit"]
    if not options.compile:
        ways.remove("compiled")
    python = shutil.which(options.lightly_python)
    find = "import importlib.util as i; raise SystemExit(i.find_spec('lightly_train') is None)"
    if python is not None and subprocess.run([python, "-c", find]).returncode == 0:
        options.lightly_python = os.path.abspath(python)
    else:
        print(
            f"LightlyTrain is left out: {options.lightly_python} has none. In an environment of "
            "its own, pip install lightly-train timm; then give --lightly-python ITS_PYTHON."
        )
        ways.remove("lightly")
    return [way for way in ways if way not in options.leave_out]


def prepare(options: argparse.Namespace, folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes slides, their index, tiles and images; the files, and the dataset's arguments."""
    # So many that no epoch ends while steps are counted: that is rare with 1,000 slides.
    n_tiles = 0
    for batch_size in options.batch_size:
        warm_up, steps = choose_steps(options, batch_size)
        n_steps = warm_up + steps * (options.rounds if options.device == "cpu" else 1)
        n_tiles = max(n_tiles, batch_size * (n_steps + 4))
    slides, index = make_slides(
        folder, options.slides, options.full_size, options.overwrite_mpp, n_tiles
    )
    data = dataset_options(str(slides), str(index), options.full_size, options.overwrite_mpp)
    tiles, images = folder / "tiles.npy", folder / "images"
    write_tiles(data, 2 * max(options.batch_size), tiles)
    write_images(tiles, images, n_tiles)
    paths = {"slides": slides, "index": index, "tiles": tiles, "images": images}
    return {name: str(path) for name, path in paths.items()}, data


def make_ways(
    names: list[str], settings: Settings, options: argparse.Namespace, folder: Path, data: dict
) -> dict[str, Way]:
    """The processes to compare, none of them started."""
    file = folder / "settings.json"
    folder.mkdir()
    settings.write(file)
    common = {
        "SETTINGS": str(file),
        "OMP_NUM_THREADS": str(settings.threads),
        "DATA_OPTIONS": json.dumps(data),
        # Memory is kept, as on CUDA: else each large tensor costs page faults, more in some ways.
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache"),
    }
    ways = {}
    for name in names:
        command = [sys.executable, str(HERE / "training_loops.py"), name]
        environment = common
        if name == "eva":
            command, variables = eva_command(settings, folder, data)
            environment = common | variables
        elif name == "lightly":
            command = [options.lightly_python, str(HERE / "training_lightly.py")]
        ways[name] = Way(command, folder / name, environment)
    return ways


def compare(
    names: list[str],
    settings: Settings,
    options: argparse.Namespace,
    folder: Path,
    data: dict[str, Any],
    flops: int,
) -> dict[str, Any]:
    """Measures and prints one comparison."""
    ways = make_ways([*names, "parts"], settings, options, folder, data)
    parts = ways.pop("parts")
    windows = take_turns(ways, options.rounds, settings.device == "cuda")
    found = summarise(windows, settings.batch_size, flops, 2 * product_side(settings.device) ** 3)
    rounds = f"{options.rounds} rounds of {settings.steps} steps"
    title = f"Batches of {settings.batch_size}, {settings.precision}, {rounds}"
    print_speeds(found, flops, title)
    try:
        found["bare_parts"] = parts.finish()
    except Failed as failure:
        print(f"parts failed: {failure}")
    else:
        print_parts(found["bare_parts"], "The bare loop, each part by itself")
    if windows.get("eva"):
        found["eva_parts"] = host_parts(windows["eva"])
        print_parts(found["eva_parts"], "eva fit, time of the host")
    return found


def end(*_: Any) -> None:
    """Ends as an error does, so that no process is left running."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def main() -> None:
    options = parse_options(__doc__.partition("\n")[0])
    signal.signal(signal.SIGTERM, end)
    names = choose_ways(options)
    networks = {name: describe_network(getattr(options, name)) for name in ("teacher", "student")}
    described = {name: network.describe(IMAGE_SIZE) for name, network in networks.items()}
    flops = described["teacher"]["flops"] + 3 * described["student"]["flops"]
    device = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"CPU, {options.threads} threads"
    )
    for name, network in described.items():
        print(
            f"{name}: {network['source']}, {network['parameters'] / 1e6:,.1f} M parameters, "
            f"{network['flops'] / 1e9:,.1f} GFLOP a tile"
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
        paths, data = prepare(options, folder)
        for batch_size in options.batch_size:
            warm_up, steps = choose_steps(options, batch_size)
            settings = Settings(
                teacher=networks["teacher"],
                student=networks["student"],
                image_size=IMAGE_SIZE,
                batch_size=batch_size,
                warm_up=warm_up,
                steps=steps,
                precision=options.precision,
                teacher_dtype=options.teacher_dtype,
                device=options.device,
                threads=options.threads,
                workers=options.workers,
                slides=paths["slides"],
                index=paths["index"],
                tiles=paths["tiles"],
                images=paths["images"],
            )
            results["comparisons"].append(
                compare(names, settings, options, folder / f"{batch_size}", data, flops)
            )
            if options.json is not None:  # after each, for a run that is ended early
                write_text(options.json, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
