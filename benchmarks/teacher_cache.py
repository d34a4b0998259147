"""Measures how much faster a run is when an earlier one has left the teacher's embeddings.

Three `eva fit` with `configs/g2l_breast.yaml` take turns, with random weights, the same tiles and
one view of each: one without a cache, one that fills an empty cache, and one that finds in a cache
what a run before it has left. Ratios are medians over the rounds of those within a round; in
brackets is the middle half of them.

The limit is the share of floating-point operations: a step without teacher costs three forward
passes of the student. On a CPU a turn is too short to fill a part of the cache (8,192 tiles):
writing one is not in it.

Run: python benchmarks/teacher_cache.py
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timm.models import save_for_hf
from training_data import dataset_options, make_slides
from training_eva import eva_command
from training_options import IMAGE_SIZE, PAPER, SMALL, choose_threads, describe_network
from training_settings import Settings
from training_tables import ratio_quartiles, share_text
from training_turns import Way, take_turns


def command_of(
    settings: Settings, folder: Path, data: dict[str, Any], cache: str, teacher: Path
) -> tuple[list[str], dict[str, str]]:
    """What a user would type, and the environment for it; writes its files into the folder."""
    folder.mkdir()
    settings.write(folder / "settings.json")
    command, variables = eva_command(settings, folder, data)
    return command, variables | {
        "SETTINGS": str(folder / "settings.json"),
        "OMP_NUM_THREADS": str(settings.threads),
        "TEACHER": f"local-dir:{teacher}",
        "TEACHER_PRETRAINED": "true",
        "TEACHER_KWARGS": "null",
        "N_VIEWS": "1",
        "TEACHER_CACHE": cache,
    }


def save_teacher(settings: Settings, folder: Path) -> None:
    """Writes the teacher with random weights, so that it has a file and a hash."""
    torch.manual_seed(0)
    model = settings.teacher.create()
    size = (3, settings.image_size, settings.image_size)
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_for_hf(
        model,
        str(folder),
        safe_serialization=True,
        model_args=settings.teacher.architecture_kwargs,
        data_config={"input_size": size} | statistics,
    )


def main() -> None:
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=Path, help="folder of slides; else those of the demo")
    parser.add_argument("--batch-size", type=int, default=128 if on_cuda else 32)
    parser.add_argument("--steps", type=int, default=128 if on_cuda else 2, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3 if on_cuda else 6)
    parser.add_argument("--workers", type=int, default=16 if on_cuda else 1)
    options = parser.parse_args()
    networks = PAPER if on_cuda else SMALL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        warm_up = 4
        n_steps = warm_up + options.steps * options.rounds
        slides, index = make_slides(
            folder, options.slides, on_cuda, 0.5, options.batch_size * (n_steps + 4)
        )
        data = dataset_options(str(slides), str(index), on_cuda, 0.5)
        settings = Settings(
            teacher=describe_network(networks["teacher"]),
            student=describe_network(networks["student"]),
            image_size=IMAGE_SIZE,
            batch_size=options.batch_size,
            warm_up=warm_up,
            steps=options.steps,
            precision="bf16-mixed" if on_cuda else "32-true",
            teacher_dtype="bfloat16" if on_cuda else "float32",
            device="cuda" if on_cuda else "cpu",
            threads=choose_threads(on_cuda, options.workers),
            workers=options.workers,
            slides=str(slides),
            index=str(index),
            tiles="",
            images="",
        )
        teacher = folder / "teacher"
        save_teacher(settings, teacher)
        filled = str(folder / "filled")
        # What an earlier run leaves, whose clock never gets to its first window.
        whole = dataclasses.replace(settings, warm_up=10**9)
        command, variables = command_of(whole, folder / "earlier", data, filled, teacher)
        variables |= {"MAX_STEPS": str(n_steps + 2), "WINDOWS": os.devnull}
        subprocess.run(
            command, cwd=folder, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL
        )
        caches = {"no cache": "null", "filling one": str(folder / "empty"), "finding one": filled}
        ways = {}
        for way, cache in caches.items():
            command, variables = command_of(settings, folder / way, data, cache, teacher)
            if way == "filling one":  # on CUDA it is started anew in each round
                command = ["sh", "-c", 'rm -rf "$TEACHER_CACHE"; exec "$@"', "sh", *command]
            ways[way] = Way(command, folder / way, variables)
        windows = take_turns(ways, options.rounds, on_cuda)
        written = sum(file.stat().st_size for file in Path(filled).rglob("part-*"))
    flops = {
        role: describe_network(network).describe(IMAGE_SIZE)["flops"]
        for role, network in networks.items()
    }
    limit = flops["teacher"] / (3 * flops["student"]) + 1
    if not all(windows.values()):
        raise SystemExit("A way has failed, as is said above: there is nothing to compare with.")
    rates = {
        way: [options.batch_size * w["steps"] / w["seconds"] for w in found]
        for way, found in windows.items()
    }
    table = Table(title=f"{networks['teacher']} to {networks['student']}, one view of each tile")
    for column in ("eva fit", "tiles/s", "of no cache"):
        table.add_column(column, justify="left" if column == "eva fit" else "right")
    for way, found in rates.items():
        share = share_text(ratio_quartiles(found, rates["no cache"]), spread=True)
        table.add_row(way, f"{statistics.median(found):,.1f}", share)
    table.caption = (
        f"limit by FLOPs: {limit:.2f}; {written / (options.batch_size * (n_steps + 2)) / 1e3:.1f} "
        "kB a tile on disk"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
