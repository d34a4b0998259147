"""`g2l plan`: what a run needs, before a GPU is rented."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2l_plugin.cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.table import Table

    from g2l_plugin.planning.plan import OnGpu, Plan

_EPILOG = """\
Variables of the configs count, as for eva. No weights are downloaded:

  g2l plan
  BATCH_SIZE=256 MICRO_BATCH_SIZE=32 g2l plan --gpu h100-80 --gpu rtx4090-24
  STUDENT=scratch:vits14 TEACHER=hf-hub:paige-ai/Virchow2 g2l plan --slides 200
  NUM_DEVICES=8 g2l plan --gpu h100-80 --price h100-80=2.10 --json plan.json

Prices, tiles per slide and sizes of slides are assumed. Speed is that of an eager step, or with
COMPILE=true of a compiled one, as measured on an H200; reading must keep up with it.
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "plan", "Says what memory, hours, disk and money a run needs.", _EPILOG
    )
    parser.add_argument(
        "--config", default="g2l_breast", metavar="NAME", help="config of the run, or its path"
    )
    parser.add_argument(
        "--gpu", action="append", metavar="GPU", help="kind of GPU, once or more; all by default"
    )
    parser.add_argument(
        "--slides", type=_whole, metavar="N", help="slides of the cohort; N_SLIDES by default"
    )
    parser.add_argument(
        "--price",
        type=_price,
        action="append",
        metavar="GPU=DOLLARS",
        help="price of an hour of a GPU, in place of the assumed one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the plan to")
    parser.set_defaults(command=_run)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def _price(text: str) -> tuple[str, float]:
    gpu, _, price = text.partition("=")
    try:
        dollars = float(price)
    except ValueError:
        dollars = -1.0
    if not 0 <= dollars < float("inf"):
        raise argparse.ArgumentTypeError(f"expected GPU=DOLLARS, as h100-80=2.10, got {text!r}")
    return gpu, dollars


def _run(options: argparse.Namespace) -> None:
    import dataclasses

    from rich.console import Console

    from g2l_plugin.planning.gpus import GPUS, find_gpu

    gpus = {key: find_gpu(key) for key in options.gpu or GPUS}
    prices = {find_gpu(key).key: dollars for key, dollars in options.price or ()}
    chosen = [
        dataclasses.replace(gpu, dollars=prices.get(gpu.key, gpu.dollars)) for gpu in gpus.values()
    ]
    with Console().status("Tracing a step of these networks ..."):
        from g2l_plugin.planning.plan import plan_run  # seconds too

        plan = plan_run(options.config, chosen, options.slides)
    for part in _describe(plan):
        # As wide as a table: columns that are cut off are of no use.
        Console(width=max(Console(width=1000).measure(part).maximum, 1), highlight=False).print(
            part
        )
    if options.json is not None:
        import json

        from g2l_plugin.files import write_text

        write_text(options.json, json.dumps(_to_json(plan), indent=2, default=str) + "\n")
        print(f"Written: {options.json}")


def _describe(plan: Plan) -> list[Any]:
    """What is printed: lines and tables."""
    settings, step = plan.settings, plan.step
    batch, micro = settings.batch_size, settings.micro_batch_size
    size = f"{batch} tiles" + (f" in micro-batches of {micro}" if micro else "")
    named = [("teacher", teacher) for teacher in plan.teachers]
    lines: list[Any] = [
        f"{role} {network.source}: {network.parameters / 1e6:,.1f} M weights, "
        f"{network.flops / 1e9:,.1f} GFLOP a tile"
        for role, network in (*named, ("student", plan.student))
    ]
    memory = _table(f"A step of {size}, {settings.precision}", "", "GB")
    parts = {
        "weights of the teachers": step.teachers,
        "weights of the student": step.student,
        "optimizer": step.optimizer,
        f"activations, then {step.gradients / 1e9:.1f} GB of gradients": step.activations(
            batch, micro
        ),
        "peak of PyTorch's tensors": step.peak(batch, micro),
    }
    for name, size_in_bytes in parts.items():
        memory.add_row(name, f"{size_in_bytes / 1e9:,.1f}")
    cohort = f"{plan.slides:,} slides ({plan.tiles / 1e6:,.1f} M tiles)"
    title = f"{plan.devices} GPU{'s' * (plan.devices > 1)}, {cohort}"
    columns = ("needs GB", f"BATCH_SIZE={batch}", "largest batch", "tiles/s", "at most")
    hours = ("hours a pass", f"hours, {settings.max_steps:,} steps", "$/hour", "$ a pass")
    gpus = _table(title, "GPU", *columns, *hours)
    for found in plan.gpus:
        gpus.add_row(*_cells(found))
    disk = _table("Disk", "", "GB")
    for name, size_in_bytes in plan.disk().items():
        disk.add_row(name, f"{size_in_bytes / 1e9:,.1f}")
    return [*lines, memory, gpus, disk]


def _cells(found: OnGpu) -> list[str]:
    fits = "fits" if found.fits else "does not fit"
    if not found.fits and found.micro_batch is not None:
        fits = f"MICRO_BATCH_SIZE={found.micro_batch}"
    return [
        found.gpu.key,
        f"{found.need / 1e9:,.1f}",
        fits,
        f"{found.largest_batch or 'none'}",
        _number(found.rate, ",.0f"),
        _number(found.limit, ",.0f"),
        _number(found.pass_hours, ",.1f"),
        _number(found.run_hours, ",.1f"),
        f"{found.gpu.dollars:.2f}",
        _number(found.pass_dollars, ",.0f"),
    ]


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _table(title: str, first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _to_json(plan: Plan) -> dict[str, Any]:
    import dataclasses

    settings, step = plan.settings, plan.step
    batch, micro = settings.batch_size, settings.micro_batch_size
    return {
        "teachers": [dataclasses.asdict(teacher) for teacher in plan.teachers],
        "student": dataclasses.asdict(plan.student),
        "batch_size": batch,
        "micro_batch_size": micro,
        "precision": settings.precision,
        "max_steps": settings.max_steps,
        "devices": plan.devices,
        "slides": plan.slides,
        "tiles": plan.tiles,
        "step_bytes": {
            "teachers": step.teachers,
            "student": step.student,
            "optimizer": step.optimizer,
            "activations_and_gradients": step.activations(batch, micro),
            "peak": step.peak(batch, micro),
        },
        "gpus": [dataclasses.asdict(found) for found in plan.gpus],
        "disk_bytes": plan.disk(),
    }
