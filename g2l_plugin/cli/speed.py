"""`g2l speed`: how fast encoders embed tiles, measured in turns."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l speed logs/breast/run_0 h-optimus-0 --precision bf16-mixed --batch-sizes 1 32 128
  g2l speed demo:teacher student=logs/quickstart/run_0/student --output speed.json
  g2l report logs --speed speed.json --output report

The networks alone, on tiles in memory. The models take turns in one process, so that a machine that
slows down slows all of them; brackets hold the middle half of the rounds. `of product` is the share
of the operations per second of a large matrix product, measured beside them.
"""
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "speed", "Measures in turns how fast models embed tiles.", _EPILOG
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="[LABEL=]MODEL",
        help="student, run, name of `g2l models` or source",
    )
    add("--output", type=Path, default=Path("speed.json"), metavar="JSON", help="all values")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to measure")
    add("--precision", choices=_PRECISIONS, default="32-true", help="as in eva's trainer")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N", help="tiles")
    add("--rounds", type=int, default=10, help="turns of each model and batch size")
    add("--threads", type=int, help="PyTorch's, on a CPU")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import dataclasses
    import json

    import torch
    from rich.console import Console

    from g2l_plugin.benchmark.models import load_as_eva, name_sources
    from g2l_plugin.errors import UserError
    from g2l_plugin.evaluation.speed import name_device
    from g2l_plugin.evaluation.speed_in_turns import time_in_turns
    from g2l_plugin.files import write_text
    from g2l_plugin.metrics.neighbours import choose_device

    for name in ("batch_sizes", "rounds", "threads"):
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}. Expected 1 or more.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no GPU here. Give --device cpu.")
    sources = name_sources(options.models)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    encoders = {label: load_as_eva(source).eval().to(device) for label, source in sources.items()}
    sizes = {name: own.usual_size for name, own in encoders.items()}
    precision = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(options.precision)
    timed, product = time_in_turns(
        encoders, sizes, options.batch_sizes, options.rounds, precision or torch.float32
    )
    found: dict[str, Any] = {
        "device": name_device(device),
        "torch": torch.__version__,
        "precision": options.precision,
        "rounds": options.rounds,
        "product_flops_per_second": product,
        "models": [dataclasses.asdict(model) for model in timed],
    }
    write_text(options.output, json.dumps(found, indent=1) + "\n")
    Console(soft_wrap=True).print(_table(found))
    print(f"Values: {options.output}")


def _table(found: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{found['device']}, {found['precision']}, {found['rounds']} rounds; "
        f"a matrix product: {found['product_flops_per_second'] / 1e12:.3g} TFLOP/s",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model")
    for name in ("M parameters", "GFLOP per tile", "batch", "tiles/s", "of product"):
        table.add_column(name, justify="right")
    for model in found["models"]:
        table.add_section()
        facts = (
            model["name"],
            f"{model['parameters'] / 1e6:,.1f}",
            f"{model['flops'] / 1e9:,.3g}",
        )
        if not model["batches"]:
            table.add_row(*facts, "", "no batch fits into memory", "")
        for number, batch in enumerate(model["batches"]):
            table.add_row(
                *(facts if number == 0 else ("", "", "")),
                f"{batch['batch_size']:,}",
                f"{batch['tiles_per_second']:,.3g} ({batch['low']:,.3g}-{batch['high']:,.3g})",
                f"{batch['of_product']:.2f}",
            )
    return table
