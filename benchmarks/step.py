"""Measures the training step alone: the module's own step on tiles that are on the device.

python benchmarks/step.py --json DIR/step.json

Each row is H-optimus-0 in bfloat16 to Hibou-L's network under autocast, with random weights (on a
CPU: ViT-S to ViT-Ti, which only shows that the script works). No step may wait for the device:
PyTorch's sync debug mode turns a wait into an error. The limit is a large matrix product in
bfloat16, which ran for some seconds. Host is the time in which the host issues a step's work: where
it is as long as the step, the host may be what limits it.

Each row is a process. Those of a group compile and warm up at once, as far as memory allows, and
are then measured one after another while the others wait. The JSON is written after each row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional
from training import PAPER, SMALL, find_network

from g2l_plugin import DistillationModule, Encoder
from g2l_plugin.distillation.objective import CombinedObjective
from g2l_plugin.distillation.teachers import Teachers
from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.encoders.float8 import compute_in_float8
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.planning.step_memory import step_alone
from g2l_plugin.slides.batch import TileBatch

GROUPS: list[dict[str, dict[str, Any]]] = [
    {
        "eager, 32": {"batch": 32, "steps": 20},
        "blocks compiled, 32": {"batch": 32, "compile": "blocks", "steps": 20},
        "COMPILE=true, 32": {"batch": 32, "compile": "encoders", "steps": 20},
        "COMPILE=true, 32, teacher in fp8": {
            "batch": 32,
            "compile": "encoders",
            "fp8": True,
            "steps": 20,
        },
    },
    {
        "COMPILE=true, 128": {"batch": 128, "compile": "encoders", "steps": 8},
        "COMPILE=true, 128 in micro-batches of 32": {
            "batch": 128,
            "micro": 32,
            "compile": "encoders",
            "steps": 5,
        },
    },
    {
        "eager, 128": {"batch": 128, "steps": 8},
        "eager, 128 in micro-batches of 32": {"batch": 128, "micro": 32, "steps": 5},
    },
]
"""What fits together into the 80 GB of a device. fp8 needs torchao."""

_WARM_UP = 4
_READY = "ready"
_PRODUCT_SIDE, _PRODUCTS = 8192, 2000


class Bench:
    """The networks' names and the device."""

    def __init__(self) -> None:
        self.on_cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_cuda else "cpu")
        names = PAPER if self.on_cuda else SMALL
        self.networks = {role: find_network(name) for role, name in names.items()}
        flops = {role: network.describe()["flops"] for role, network in self.networks.items()}
        self.flops = flops["teacher"] + 3 * flops["student"]

    def encoder(self, role: str, dtype: torch.dtype) -> Encoder:
        """A network with random weights, made on the device."""
        with self.device:
            model = self.networks[role].create()
        random = Provenance(role, sha256="0" * 64)
        encoder = Encoder(model.to(dtype), mean=(0.5,) * 3, std=(0.2,) * 3, provenance=random)
        return encoder.to(self.device)

    def module(self, micro: int | None) -> DistillationModule:
        """The module that is trained."""
        source = EncoderSource("none")
        module = DistillationModule(source, source, micro_batch_size=micro)
        step_alone(module)
        teachers = Teachers([])
        teacher = self.encoder("teacher", torch.bfloat16).eval().requires_grad_(False)
        teachers._encoders = nn.ModuleList([teacher])
        module.teachers, module.student = teachers, self.encoder("student", torch.float32)
        dims = module.student.embedding_dim, [teacher.embedding_dim]
        module.objective = CombinedObjective(*dims, module.loss).to(self.device)
        return module.to(self.device).train()  # the module is told its device too

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def limit(self) -> float | None:
        """Operations per second of a large matrix product; None on a CPU."""
        if not self.on_cuda:
            return None
        shape = (_PRODUCT_SIDE, _PRODUCT_SIDE)
        a, b = (torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        torch.mm(a, b)
        self.synchronize()
        began = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.mm(a, b)
        self.synchronize()
        return 2 * _PRODUCT_SIDE**3 * _PRODUCTS / (time.perf_counter() - began)

    def measure(
        self,
        batch: int,
        steps: int,
        micro: int | None = None,
        compile: str | None = None,
        fp8: bool = False,
    ) -> dict[str, float]:
        """Measures one row, once the parent says that it is its turn."""
        torch.manual_seed(0)
        module = self.module(micro)
        if fp8:
            compute_in_float8(module.teacher.model)
        for encoder in (module.student, *module.teachers.encoders) if compile else ():
            for part in encoder.model.blocks if compile == "blocks" else [encoder]:
                part.compile()
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        shape = (batch, 3, 256, 256)
        tiles = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
        host, began = [], time.perf_counter()
        for step in range(_WARM_UP + steps):
            if step == _WARM_UP:
                self.synchronize()
                warm_up = time.perf_counter() - began
                wait_for_turn()
                since = time.perf_counter()
                if self.on_cuda:
                    torch.cuda.set_sync_debug_mode("error")
            issued = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16):
                batch_ = TileBatch(tiles, np.arange(batch), None, step)
                loss = module.training_step(batch_)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            host.append(time.perf_counter() - issued)
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.synchronize()
        seconds = (time.perf_counter() - since) / steps
        found = {
            "tiles_per_second": batch / seconds,
            "step_ms": 1000 * seconds,
            "host_ms": 1000 * float(np.median(host[_WARM_UP:])),
            "warm_up_seconds": warm_up,
            "flops_per_second": batch * self.flops / seconds,
        }
        if self.on_cuda:
            found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        return found

    @torch.no_grad()
    def teacher_precision(self, n_tiles: int) -> dict[str, float]:
        """Mean cosine between the teacher's embeddings in float32 and in lower precision."""
        torch.manual_seed(0)
        teacher = self.encoder("teacher", torch.float32).eval()
        images = torch.rand(n_tiles, 3, 224, 224, device=self.device)
        full = teacher(images)
        with torch.autocast(self.device.type, torch.bfloat16):
            found = {"autocast": teacher(images)}
        teacher.model.to(torch.bfloat16)
        found["bfloat16 throughout"] = teacher(images)
        if self.on_cuda and importlib.util.find_spec("torchao"):
            compute_in_float8(teacher.model)
            found["fp8"] = teacher(images)
        return {
            name: functional.cosine_similarity(full, embeddings.float()).mean().item()
            for name, embeddings in found.items()
        }


def wait_for_turn() -> None:
    """Tells the parent that this row has warmed up, and waits until it may be measured."""
    print(_READY, flush=True)
    sys.stdin.readline()


def measure_row(name: str, path: Path) -> None:
    """Measures a row in this process, and writes what was found."""
    bench = Bench()
    row = next(group[name] for group in GROUPS if name in group)
    if not bench.on_cuda:
        row = {**row, "batch": 4, "steps": 1, "fp8": False}
    path.write_text(json.dumps(bench.measure(**row)))


def measure_group(
    names: list[str], folder: Path, patience: float
) -> Iterator[tuple[str, dict[str, float] | None]]:
    """Starts rows at once and measures them one after another; None for one that failed.

    Args:
        names: The rows.
        folder: Where they write what they find.
        patience: Seconds after which a row that has not warmed up is ended.
    """
    ways = {}
    for name in names:
        path = folder / f"{name}.json"
        command = [sys.executable, __file__, "--json", str(path), "--row", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **pipes)
        timer = threading.Timer(patience, process.kill)
        timer.start()
        ways[name] = path, process, timer
    for _, process, timer in ways.values():
        while (line := process.stdout.readline()) and line.strip() != _READY:
            pass
        timer.cancel()
    for name, (path, process, _) in ways.items():
        process.communicate("\n")
        yield name, json.loads(path.read_text()) if process.returncode == 0 else None


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the results to")
    names = [name for group in GROUPS for name in group]
    parser.add_argument("--rows", nargs="*", default=names, choices=names, help="rows to measure")
    parser.add_argument(
        "--patience", type=float, default=180.0, help="seconds in which a row must have warmed up"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)  # of a process that measures one
    options = parser.parse_args()
    if options.row:
        return measure_row(options.row, options.json)
    bench = Bench()
    device = torch.cuda.get_device_name() if bench.on_cuda else "CPU"
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "rows": {}}
    results["limit_flops_per_second"] = limit = bench.limit()
    results["teacher_cosine_to_float32"] = bench.teacher_precision(64 if bench.on_cuda else 4)
    if bench.on_cuda:
        torch.cuda.empty_cache()
    table = Table(title=device)
    for column in ("batch", "tiles/s", "of limit", "ms", "host ms", "GB", "first steps, s"):
        table.add_column(column, justify="left" if column == "batch" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUPS:
            chosen = [name for name in group if name in options.rows]
            for name, found in measure_group(chosen, Path(folder), options.patience):
                if found is None:
                    table.add_row(name, "failed")
                    continue
                results["rows"][name] = found
                options.json.write_text(json.dumps(results, indent=2) + "\n")
                table.add_row(
                    name,
                    f"{found['tiles_per_second']:.0f}",
                    f"{found['flops_per_second'] / limit:.2f}" if limit else "",
                    f"{found['step_ms']:.0f}",
                    f"{found['host_ms']:.0f}",
                    f"{found.get('peak_memory_bytes', 0) / 1e9:.1f}",
                    f"{found['warm_up_seconds']:.0f}",
                )
    Console().print(table)
    print("Teacher, cosine to float32:", results["teacher_cosine_to_float32"])


if __name__ == "__main__":
    main()
