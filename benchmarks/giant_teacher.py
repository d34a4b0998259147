"""Loads and runs H-optimus-0's architecture, 1.1 billion parameters, with random weights.

Each way to load the file of float32 weights runs in a separate process:

- ours, in float32 and in bfloat16: `g2l_plugin.load_encoder`.
- timm: `timm.create_model("local-dir:...", pretrained=True)`.

Memory counts only anonymous pages: the system can drop pages of the file at any time. The limit of
the speed is that of a matrix product of the same precision on this machine.

Run: python benchmarks/giant_teacher.py --folder DIR (needs 4.6 GB of disk during the run)
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.models import save_for_hf
from torch.utils.flop_counter import FlopCounterMode

from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.encoders.load import load_encoder

KNOWN = KNOWN_ENCODERS["hf-hub:bioptimus/H-optimus-0"]
WAYS = ("ours, float32", "ours, bfloat16", "timm, float32")


class Memory:
    """Anonymous memory of this process in GB: now, and its peak since the start."""

    def __init__(self) -> None:
        self.peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1e6
        raise RuntimeError(
            "This system does not report RssAnon in /proc/self/status. Run this on Linux."
        )

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.01)


def write_weights(folder: Path) -> None:
    """Writes a folder as timm publishes it, with random weights in float32."""
    model = timm.create_model(KNOWN.architecture, num_classes=0, **KNOWN.model_kwargs)
    config = {"input_size": (3, 224, 224), "mean": KNOWN.mean, "std": KNOWN.std}
    save_for_hf(model, str(folder), safe_serialization=True, data_config=config)


def measure(
    way: str, folder: Path, n_tiles: int, rounds: int, queue: multiprocessing.Queue
) -> None:
    """Puts seconds to load, memory held and peak, and seconds per tile into the queue."""
    memory = Memory()
    before, start = memory.now(), time.perf_counter()
    if way.startswith("timm"):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        model = load_encoder(f"local-dir:{folder}", dtype=way.split(", ")[1])
    loading = time.perf_counter() - start
    model.eval()
    images = torch.rand(n_tiles, 3, 224, 224)
    times = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as flops:
            model(images[:1])
        for _ in range(rounds):
            start = time.perf_counter()
            model(images)
            times.append((time.perf_counter() - start) / n_tiles)
    dtype = next(model.parameters()).dtype
    queue.put(
        {
            "loading": loading,
            "after": memory.now() - before,
            "peak": memory.peak - before,
            "seconds": statistics.median(times),
            "flops": flops.get_total_flops(),
            "limit": matmul_rate(dtype),
        }
    )


def matmul_rate(dtype: torch.dtype) -> float:
    """Measures the FLOP/s of a large matrix product, the best of three."""
    a, b = (torch.rand(4096, 4096).to(dtype) for _ in range(2))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to keep the weights during the run")
    parser.add_argument("--n-tiles", type=int, default=4, help="per batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    table = Table(title=f"{KNOWN.name}'s architecture: {KNOWN.parameters:,} random weights")
    for column in ("way", "s to load", "GB held", "peak GB", "s/tile", "GFLOP/tile", "of limit"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = spawn.Process(target=write_weights, args=(Path(folder),))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(
                "Could not write the weights. They need 4.6 GB: give a --folder with room."
            )
        for way in WAYS:
            queue = spawn.Queue()
            arguments = (way, Path(folder), options.n_tiles, options.rounds, queue)
            process = spawn.Process(target=measure, args=arguments)
            process.start()
            process.join()  # before get: the result is small enough to wait in the pipe
            if process.exitcode:
                raise SystemExit(f"{way}: the process exited with {process.exitcode}.")
            found = queue.get()
            table.add_row(
                way,
                f"{found['loading']:.1f}",
                f"{found['after']:.2f}",
                f"{found['peak']:.2f}",
                f"{found['seconds']:.2f}",
                f"{found['flops'] / 1e9:.1f}",
                f"{found['flops'] / found['seconds'] / found['limit']:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
