"""Measures what this package adds to the time of `import torch` and `import eva.vision`.

Each import runs in a new process, with and without the plugin in turn, so that a machine that slows
down slows down both. "Switched off" is G2L_PLUGIN_AUTOLOAD=0: PyTorch still calls the plugin, which
returns immediately. "Without" is TORCH_DEVICE_BACKEND_AUTOLOAD=0: PyTorch looks for no plugins.

Run: python benchmarks/import_time.py --repeats 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from rich.console import Console
from rich.progress import track
from rich.table import Table

MODULES = ("torch", "eva.vision")
SETTINGS = {
    "without": {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    "switched off": {"G2L_PLUGIN_AUTOLOAD": "0"},
    "with plugin": {},
}
"""Environment variables of each column."""

_TIMED = """
import importlib, sys, time
start = time.perf_counter()
importlib.import_module(sys.argv[1])
print(time.perf_counter() - start, len(sys.modules))
"""


def time_import(module: str, setting: str) -> tuple[float, int]:
    """Measures an import in a new process: its seconds, and the number of modules imported."""
    switches = {name for variables in SETTINGS.values() for name in variables}
    environment = {key: value for key, value in os.environ.items() if key not in switches}
    output = subprocess.run(
        [sys.executable, "-c", _TIMED, module],
        env=environment | SETTINGS[setting],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    seconds, modules = output.split()[-2:]
    return float(seconds), int(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="runs of each import")
    repeats = parser.parse_args().repeats
    for module in MODULES:  # not measured: fills the file cache
        time_import(module, "with plugin")
    runs: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for _ in track(range(repeats), "Importing", console=Console(stderr=True)):
        for module in MODULES:
            for setting in SETTINGS:
                runs.setdefault((module, setting), []).append(time_import(module, setting))

    table = Table(title=f"Median import time of {repeats} runs")
    table.add_column("import", no_wrap=True)
    table.add_column("plugin", no_wrap=True)
    for column in ("ms", "min to max", "ratio", "modules"):
        table.add_column(column, justify="right", no_wrap=True)
    for module in MODULES:
        baseline = statistics.median(seconds for seconds, _ in runs[module, "without"])
        for setting in SETTINGS:
            seconds = [value for value, _ in runs[module, setting]]
            median = statistics.median(seconds)
            table.add_row(
                module,
                setting,
                f"{1000 * median:.0f}",
                f"{1000 * min(seconds):.0f} to {1000 * max(seconds):.0f}",
                f"{median / baseline:.3f}",
                str(runs[module, setting][0][1]),
            )
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
