"""Measures how much faster a run is if an earlier one has left the teacher's embeddings.

Three `eva fit` with `configs/g2l_breast.yaml` take turns, with random weights, the same tiles and
one view of each tile: one without a cache, one that fills an empty cache, and one that reads the
cache of an earlier run. Ratios are taken within a round and reported as medians over the rounds,
with the middle half in brackets.

The limit is the ratio of floating-point operations: a step without the teacher costs three forward
passes of the student. On a CPU, a turn is too short to fill a part of the cache (8,192 tiles), so
it does not include the writing of one.

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

import torch
from cohorts import make_training_cohort
from rich.console import Console
from rich.table import Table
from timm.models import save_for_hf
from training import PAPER, SMALL, choose_threads, find_network, ratio_quartiles, share_text
from turns import IMAGE_SIZE, Settings, Way, take_turns
from ways import eva_command


def command_of(
    settings: Settings, folder: Path, cache: str, teacher: Path
) -> tuple[list[str], dict[str, str]]:
    """What a user would type, and the environment for it; writes its files into the folder."""
    folder.mkdir()
    common = settings.write(folder / "settings.json")
    command, variables = eva_command(settings, folder)
    return command, common | variables | {
        "TEACHER": f"local-dir:{teacher}",
        "TEACHER_PRETRAINED": "true",
        "TEACHER_KWARGS": "null",
        "N_VIEWS": "1",
        "TEACHER_CACHE": cache,
    }


def save_teacher(settings: Settings, folder: Path) -> None:
    """Writes a teacher with random weights to a folder: the cache needs the hash of its file."""
    torch.manual_seed(0)
    model = settings.teacher.create()
    save_for_hf(
        model,
        str(folder),
        safe_serialization=True,
        model_args=settings.teacher.architecture_kwargs,
        data_config={
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        },
    )


def main() -> None:
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=Path, help="folder of slides; by default the demo's")
    parser.add_argument("--batch-size", type=int, default=128 if on_cuda else 32)
    parser.add_argument("--steps", type=int, default=128 if on_cuda else 2, help="per turn")
    parser.add_argument("--rounds", type=int, default=3 if on_cuda else 6)
    parser.add_argument("--workers", type=int, default=16 if on_cuda else 1)
    options = parser.parse_args()
    names = PAPER if on_cuda else SMALL
    networks = {role: find_network(name) for role, name in names.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        warm_up = 4
        n_steps = warm_up + options.steps * options.rounds
        data = make_training_cohort(
            folder, options.slides, on_cuda, 0.5, options.batch_size * (n_steps + 4)
        )
        settings = Settings(
            **networks,
            batch_size=options.batch_size,
            warm_up=warm_up,
            steps=options.steps,
            precision="bf16-mixed" if on_cuda else "32-true",
            teacher_dtype="bfloat16" if on_cuda else "float32",
            device="cuda" if on_cuda else "cpu",
            threads=choose_threads(on_cuda, options.workers),
            workers=options.workers,
            data=data,
        )
        teacher = folder / "teacher"
        save_teacher(settings, teacher)
        filled = str(folder / "filled")
        # The cache of an earlier run, whose warm-up does not end.
        whole = dataclasses.replace(settings, warm_up=10**9)
        command, variables = command_of(whole, folder / "earlier", filled, teacher)
        variables |= {"MAX_STEPS": str(n_steps + 2), "WINDOWS": os.devnull}
        subprocess.run(
            command, cwd=folder, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL
        )
        caches = {"no cache": "null", "filling one": str(folder / "empty"), "finding one": filled}
        ways = {}
        for way, cache in caches.items():
            command, variables = command_of(settings, folder / way, cache, teacher)
            if way == "filling one":  # on CUDA it starts again in each round
                command = ["sh", "-c", 'rm -rf "$TEACHER_CACHE"; exec "$@"', "sh", *command]
            ways[way] = Way(command, folder / way, variables)
        windows = take_turns(ways, options.rounds, on_cuda)
        written = sum(file.stat().st_size for file in Path(filled).rglob("part-*"))
    flops = {role: network.describe()["flops"] for role, network in networks.items()}
    limit = flops["teacher"] / (3 * flops["student"]) + 1
    if not all(windows.values()):
        raise SystemExit("A way failed (see above), so there is nothing to compare.")
    rates = {
        way: [options.batch_size * w["steps"] / w["seconds"] for w in found]
        for way, found in windows.items()
    }
    table = Table(title=f"{names['teacher']} to {names['student']}, one view of each tile")
    for column in ("eva fit", "tiles/s", "of no cache"):
        table.add_column(column, justify="left" if column == "eva fit" else "right")
    for way, found in rates.items():
        share = share_text(ratio_quartiles(found, rates["no cache"]), spread=True)
        table.add_row(way, f"{statistics.median(found):,.1f}", share)
    table.caption = (
        f"limit by FLOPs: {limit:.2f}; {written / (options.batch_size * (n_steps + 2)) / 1e3:.1f} "
        "kB per tile on disk"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
