"""What `training.py` is asked to compare."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from training_settings import Network

from g2l_plugin.encoders.known import find_known

RECIPE = Path(__file__).parents[1] / "configs" / "g2l_breast.yaml"
IMAGE_SIZE = 224
PAPER = {"teacher": "hf-hub:bioptimus/H-optimus-0", "student": "hf-hub:histai/hibou-L"}
SMALL = {"teacher": "vit_small_patch16_224", "student": "vit_tiny_patch16_224"}


def parse_options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--teacher", help="timm's name, or a source that `g2l models` lists")
    parser.add_argument("--student", help="likewise; the defaults are the paper's on CUDA")
    parser.add_argument("--batch-size", type=int, nargs="+")
    parser.add_argument(
        "--steps", type=int, help="of a turn; on CUDA as many as make 8,192 tiles, 10 at least"
    )
    parser.add_argument("--warm-up", type=int, help="steps before the first turn; 2, or a quarter")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--teacher-dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="measures the loop compiled too")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--workers", type=int, help="data workers")
    parser.add_argument(
        "--leave-out", choices=("eva", "timm", "lightly"), nargs="+", default=[], metavar="WAY"
    )
    parser.add_argument(
        "--lightly-python", default=sys.executable, help="a Python that has lightly_train"
    )
    parser.add_argument(
        "--slides",
        type=Path,
        default=os.environ.get("G2L_SLIDES"),
        help="folder of slides (G2L_SLIDES); without it, slides of the demo cohort",
    )
    parser.add_argument("--overwrite-mpp", type=float, default=0.5)
    parser.add_argument(
        "--full-size",
        action=argparse.BooleanOptionalAction,
        help="one slide as large as a scanner's, 1 GB; the default on CUDA",
    )
    parser.add_argument("--folder", type=Path, help="where to put slides and tiles for a while")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = options.device == "cuda"
    defaults = {
        **(PAPER if on_cuda else SMALL),
        "batch_size": [32, 64, 128, 256] if on_cuda else [32],
        "rounds": 2 if on_cuda else 12,
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
    """PyTorch's threads: on a CPU, data workers have cores of their own, as beside a GPU."""
    cores = os.cpu_count() or 1
    return cores if on_cuda else max(1, cores - workers)


def choose_steps(options: argparse.Namespace, batch_size: int) -> tuple[int, int]:
    """Steps to warm up, and of a turn: on CUDA more than the workers have read ahead."""
    steps = options.steps or (1 if options.device == "cpu" else max(10, 8192 // batch_size))
    return options.warm_up or max(2, steps // 4), steps


def describe_network(name: str) -> Network:
    """A network as this package and timm know it."""
    if ":" not in name:
        if not timm.is_model(name):
            raise SystemExit(f"timm has no {name}. Expected a name as timm.list_models() has it.")
        config = timm.get_pretrained_cfg(name)
        fits = config is not None and config.input_size[-1] == IMAGE_SIZE
        kwargs: dict[str, Any] = {} if fits else {"img_size": IMAGE_SIZE}
        return Network(f"timm:{name}", kwargs, name, kwargs)
    known = find_known(name)
    if known is None:
        raise SystemExit(f"{name} is not known. Expected timm's name, or one of `g2l models`.")
    return Network(name, {}, known.architecture, dict(known.model_kwargs))
