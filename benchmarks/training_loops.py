"""Loops that `training.py` compares `eva fit` with, each in a process of its own.

python training_loops.py WAY, with the files of the settings and of the windows in the environment.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from timm.task import FeatureDistillationTask
from torch import nn
from training_settings import Network, Settings
from training_turns import Clock

from g2l_plugin import AugmentedView, Encoder, LogSumLoss, TileDataset, TileLoader, load_encoder
from g2l_plugin.distillation.objective import Objective

_PARTS_WARM_UP, _PARTS_STEPS = 2, 5


class Setting:
    """Networks, tiles and view of a comparison, on its device."""

    def __init__(self, settings: Settings, compile: bool = False) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(0)
        teacher, student = settings.teacher, settings.student
        self.teacher = self._load(teacher, settings.teacher_dtype).eval().requires_grad_(False)
        self.student = self._load(student, "float32").train()
        self.view = AugmentedView(settings.image_size)
        self.objective = Objective(
            self.student.embedding_dim, self.teacher.embedding_dim, LogSumLoss()
        ).to(self.device)
        if compile:
            self.teacher.model.compile()
            self.student.model.compile()
        self.pool = torch.from_numpy(np.load(settings.tiles)).to(self.device)

    def tiles(self) -> torch.Tensor:
        """A batch of tiles, uint8, on the device."""
        drawn = torch.randperm(len(self.pool), device=self.device)
        return self.pool[drawn[: self.settings.batch_size]]

    def autocast(self) -> torch.autocast:
        """What Lightning's precision sets."""
        mixed = self.settings.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def optimizer(self, *modules: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)

    def _load(self, network: Network, dtype: str) -> Encoder:
        encoder = load_encoder(
            network.source, pretrained=False, model_kwargs=network.kwargs, dtype=dtype
        )
        return encoder.to(self.device)


def bare_loop(setting: Setting) -> Iterator[None]:
    """The step of `DistillationModule`, and nothing else."""
    optimizer = setting.optimizer(setting.student, setting.objective)
    while True:
        views = setting.view(setting.tiles())
        with setting.autocast():
            with torch.inference_mode():
                target = setting.teacher(views)
            loss = setting.objective(setting.student(views), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def timm_task(setting: Setting) -> Iterator[None]:
    """timm's `FeatureDistillationTask`, without its classification loss."""
    task = FeatureDistillationTask(
        setting.student.model,
        setting.teacher.model,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=1.0,
        task_loss_weight=0.0,
        device=setting.device,
        verbose=False,
    ).to(setting.device)
    task.train()
    optimizer = setting.optimizer(task.trainable_module)
    target = torch.zeros(setting.settings.batch_size, dtype=torch.long, device=setting.device)
    while True:
        views = setting.view(setting.tiles())
        with setting.autocast():
            loss = task((views - task.student_mean) / task.student_std, target)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def loader_alone(loader: TileLoader) -> Iterator[None]:
    """Batches as `eva fit` gets them, with nothing done to them; whole epochs."""
    yield  # a window begins with an epoch
    while True:
        for _ in loader:
            yield


def matrix_product(settings: Settings) -> Iterator[None]:
    """The limit: a product of large square matrices, in the precision of the step."""
    side = product_side(settings.device)
    a, b = (torch.rand(side, side).to(settings.device, settings.dtype()) for _ in range(2))
    while True:
        torch.mm(a, b)
        yield


def product_side(device: str) -> int:
    """Side of the square matrices whose product is the limit."""
    return 8192 if device == "cuda" else 4096


def measure_parts(setting: Setting) -> dict[str, float]:
    """Median seconds of each part of the bare loop's step, the device synchronised around each."""
    seconds: list[dict[str, float]] = []

    @contextmanager
    def part(name: str) -> Iterator[None]:
        _synchronize(setting.device)
        start = time.perf_counter()
        yield
        _synchronize(setting.device)
        seconds[-1][name] = seconds[-1].get(name, 0.0) + time.perf_counter() - start

    optimizer = setting.optimizer(setting.student, setting.objective)
    for _ in range(_PARTS_WARM_UP + _PARTS_STEPS):
        seconds.append({})
        with part("tiles from memory"):
            tiles = setting.tiles()
        with part("views"):
            views = setting.view(tiles)
        with setting.autocast():
            with part("teacher forward"), torch.inference_mode():
                target = setting.teacher(views)
            with part("student forward and backward"):
                embeddings = setting.student(views)
            leaf = embeddings.detach().requires_grad_()
            with part("objective forward and backward"):
                setting.objective(leaf, target).backward()
        with part("student forward and backward"):
            embeddings.backward(leaf.grad)
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    measured = seconds[_PARTS_WARM_UP:]
    return {name: statistics.median(step[name] for step in measured) for name in measured[0]}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    way = sys.argv[1]
    settings = Settings.read(os.environ["SETTINGS"])
    if way == "parts":
        Path(os.environ["WINDOWS"]).write_text(json.dumps(measure_parts(Setting(settings))))
    elif way == "loader":
        dataset = TileDataset(**json.loads(os.environ["DATA_OPTIONS"]), split="train")
        dataset.setup()
        loader = TileLoader(dataset, settings.batch_size, num_workers=settings.workers)
        on_cuda = settings.device == "cuda"  # where a window outlasts what was read ahead
        clock = Clock(2, min(settings.steps, len(loader) - 1)) if on_cuda else Clock(1, len(loader))
        run(loader_alone(loader), clock)
    elif way == "limit":
        n_products = 200 if settings.device == "cuda" else 3
        run(matrix_product(settings), Clock(3, n_products, settings.device == "cuda"))
    elif way in ("bare", "compiled", "timm"):
        loop = timm_task if way == "timm" else bare_loop
        run(loop(Setting(settings, compile=way == "compiled")), Clock.of(settings))
    else:
        raise SystemExit(f"Unknown way {way!r}.")


def run(loop: Iterator[None], clock: Clock) -> None:
    for _ in loop:
        clock.step()


if __name__ == "__main__":
    main()
