"""The ways to train that `training.py` compares, each run in a separate process.

`eva fit` gets an additional config with a profiler (`StepTimes`), which counts its steps. The other
ways are loops: `python ways.py WAY`, with the files SETTINGS and WINDOWS in the environment.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.profilers import Profiler
from timm.task import FeatureDistillationTask
from torch import nn
from turns import IMAGE_SIZE, Clock, Network, Settings

from g2l_plugin import AugmentedView, Encoder, LogSumLoss, TileDataset, TileLoader, load_encoder
from g2l_plugin.distillation.objective import Objective

HERE = Path(__file__).parent
RECIPE = HERE.parent / "configs" / "g2l_breast.yaml"
_NEVER = str(10**9)
_PARTS_WARM_UP, _PARTS_STEPS = 2, 5


def eva_command(settings: Settings, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What a user would type to train with the recipe, and the environment variables for it.

    The recipe's config is used as it is. A second config adds the profiler and the arguments of the
    datasets that have no variable. The measured steps exclude checkpoints and validation.

    Args:
        settings: What to train.
        folder: Where to write the second config and the run.
    """
    dataset = {"class_path": "g2l_plugin.TileDataset", "init_args": settings.data}
    added = {
        "trainer": {
            "class_path": "g2l_plugin.KDTrainer",
            "init_args": {"profiler": {"class_path": "ways.StepTimes"}},
        },
        "data": {
            "class_path": "g2l_plugin.TileDataModule",
            "init_args": {"datasets": {"train": dataset, "val": dataset}},
        },
    }
    path = folder / "added.yaml"
    path.write_text(json.dumps(added))  # JSON is YAML
    search = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(search),
        "TEACHER": settings.teacher.source,
        "TEACHER_PRETRAINED": "false",
        "TEACHER_KWARGS": json.dumps(settings.teacher.kwargs),
        "TEACHER_DTYPE": settings.teacher_dtype,
        "STUDENT": settings.student.source,
        "STUDENT_PRETRAINED": "false",
        "STUDENT_KWARGS": json.dumps(settings.student.kwargs),
        "VIEW_SIZE": str(IMAGE_SIZE),
        "BATCH_SIZE": str(settings.batch_size),
        "N_DATA_WORKERS": str(settings.workers),
        "PRECISION": settings.precision,
        "ACCELERATOR": settings.device,
        "NUM_DEVICES": "1",
        "OUTPUT_ROOT": str(folder / "logs"),
        "MAX_STEPS": _NEVER,
        "EARLY_STOP_EXCEEDANCES": _NEVER,
        "VAL_CHECK_INTERVAL": _NEVER,
        "CHECKPOINT_INTERVAL": _NEVER,
        "CHECKPOINT_MINUTES": _NEVER,
        "RESUME": "null",
    }
    eva = Path(sys.executable).with_name("eva")
    return [str(eva), "fit", "--config", str(RECIPE), "--config", str(path)], environment


class StepTimes(Profiler):
    """Counts the steps of `eva fit`, and sums the host's seconds in what Lightning names.

    A profiler and no callback, because a second config can set one without replacing a list.

    CUDA work continues after the host has issued it: there, these are not times of the device,
    but show whether the host keeps up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since: dict[str, float] = {}
        self._totals: dict[str, float] = defaultdict(float)
        self._clock: Clock | None = None

    def start(self, action_name: str) -> None:
        self._since[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        since = self._since.pop(action_name, None)
        if since is not None:
            self._totals[action_name] += time.perf_counter() - since
        # The last hook of a step: Lightning calls the module's after those of the callbacks.
        if action_name == "[LightningModule]DistillationModule.on_train_batch_end":
            if self._clock is None:
                self._clock = Clock.of(Settings.read(), self.take)
            self._clock.step()

    def take(self) -> dict[str, Any]:
        """Returns the seconds of each part since the last call."""
        totals, self._totals = self._totals, defaultdict(float)
        self._since.clear()  # a part that is open would include the pause

        def total(*endings: str) -> float:
            return sum(seconds for name, seconds in totals.items() if name.endswith(endings))

        forward, backward = total("Strategy.training_step"), total("Strategy.backward")
        return {
            "host_seconds": {
                "data wait": total(".train_dataloader_next"),
                "transfer": total("Strategy.batch_to_device"),
                "views, teacher and student forward, objective": forward,
                "backward": backward,
                "optimizer": total(".optimizer_step") - forward - backward,
                "callbacks and hooks": total("on_train_batch_start", "on_train_batch_end"),
            }
        }


class Bench:
    """Networks, tiles, view and objective on the device, the same for all loops."""

    def __init__(self, settings: Settings, compile: bool = False) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(0)
        teacher, student = settings.teacher, settings.student
        self.teacher = self._load(teacher, settings.teacher_dtype).eval().requires_grad_(False)
        self.student = self._load(student, "float32").train()
        self.view = AugmentedView(IMAGE_SIZE)
        self.objective = Objective(
            self.student.embedding_dim, self.teacher.embedding_dim, LogSumLoss()
        ).to(self.device)
        if compile:
            self.teacher.model.compile()
            self.student.model.compile()
        self.pool = torch.from_numpy(np.load(settings.tiles)).to(self.device)

    def tiles(self) -> torch.Tensor:
        """A batch of tiles, uint8 (B, 3, 256, 256), on the device."""
        drawn = torch.randperm(len(self.pool), device=self.device)
        return self.pool[drawn[: self.settings.batch_size]]

    def autocast(self) -> torch.autocast:
        """The autocast that Lightning uses for this precision."""
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


def bare_loop(bench: Bench) -> Iterator[None]:
    """The step of `DistillationModule`, and nothing else."""
    optimizer = bench.optimizer(bench.student, bench.objective)
    while True:
        views = bench.view(bench.tiles())
        with bench.autocast():
            with torch.inference_mode():
                target = bench.teacher(views)
            loss = bench.objective(bench.student(views), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def timm_task(bench: Bench) -> Iterator[None]:
    """timm's `FeatureDistillationTask`, without its classification loss."""
    task = FeatureDistillationTask(
        bench.student.model,
        bench.teacher.model,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=1.0,
        task_loss_weight=0.0,
        device=bench.device,
        verbose=False,
    ).to(bench.device)
    task.train()
    optimizer = bench.optimizer(task.trainable_module)
    target = torch.zeros(bench.settings.batch_size, dtype=torch.long, device=bench.device)
    while True:
        views = bench.view(bench.tiles())
        with bench.autocast():
            loss = task((views - task.student_mean) / task.student_std, target)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def loader_alone(loader: TileLoader) -> Iterator[None]:
    """Whole epochs of the batches that `eva fit` reads, unused."""
    yield  # a window begins with an epoch
    while True:
        for _ in loader:
            yield


def matrix_product(settings: Settings) -> Iterator[None]:
    """The limit: a product of large square matrices, in the precision of the step."""
    side = product_side(settings.device)
    dtype = torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32
    a, b = (torch.rand(side, side).to(settings.device, dtype) for _ in range(2))
    while True:
        torch.mm(a, b)
        yield


def product_side(device: str) -> int:
    """Side of the square matrices whose product is the limit."""
    return 8192 if device == "cuda" else 4096


def measure_parts(bench: Bench) -> dict[str, float]:
    """Measures each part of the bare loop's step, with the device synchronised around it.

    Returns:
        Median seconds by part.
    """
    seconds: list[dict[str, float]] = []

    @contextmanager
    def part(name: str) -> Iterator[None]:
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        seconds[-1][name] = seconds[-1].get(name, 0.0) + time.perf_counter() - start

    def synchronize() -> None:
        if bench.settings.on_cuda:
            torch.cuda.synchronize(bench.device)

    optimizer = bench.optimizer(bench.student, bench.objective)
    for _ in range(_PARTS_WARM_UP + _PARTS_STEPS):
        seconds.append({})
        with part("tiles from memory"):
            tiles = bench.tiles()
        with part("views"):
            views = bench.view(tiles)
        with bench.autocast():
            with part("teacher forward"), torch.inference_mode():
                target = bench.teacher(views)
            with part("student forward and backward"):
                embeddings = bench.student(views)
            leaf = embeddings.detach().requires_grad_()
            with part("objective forward and backward"):
                bench.objective(leaf, target).backward()
        with part("student forward and backward"):
            embeddings.backward(leaf.grad)
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    measured = seconds[_PARTS_WARM_UP:]
    return {name: statistics.median(step[name] for step in measured) for name in measured[0]}


def main() -> None:
    way = sys.argv[1]
    settings = Settings.read()
    if way == "parts":
        Path(os.environ["WINDOWS"]).write_text(json.dumps(measure_parts(Bench(settings))))
    elif way == "loader":
        dataset = TileDataset(**settings.data, split="train")
        dataset.setup()
        loader = TileLoader(dataset, settings.batch_size, num_workers=settings.workers)
        # On CUDA, a window is longer than what the workers have read ahead.
        clock = (
            Clock(2, min(settings.steps, len(loader) - 1))
            if settings.on_cuda
            else Clock(1, len(loader))
        )
        run(loader_alone(loader), clock)
    elif way == "limit":
        n_products = 200 if settings.on_cuda else 3
        run(matrix_product(settings), Clock(3, n_products, settings.on_cuda))
    elif way in ("bare", "compiled", "timm"):
        loop = timm_task if way == "timm" else bare_loop
        run(loop(Bench(settings, compile=way == "compiled")), Clock.of(settings))
    else:
        raise SystemExit(f"Unknown way {way!r}.")


def run(loop: Iterator[None], clock: Clock) -> None:
    for _ in loop:
        clock.step()


if __name__ == "__main__":
    main()
