"""`g2l doctor`: whether this machine can train, and what to change."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
Variables of the configs count, as for eva:

  g2l doctor
  SLIDES_ROOT=/data/TCGA-BRCA BATCH_SIZE=64 g2l doctor
  STUDENT=scratch:vits14 g2l doctor --config g2l_small

The exit status is 1 if there is a problem, which would stop the run, and 0 otherwise.
"""
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "doctor", "Says whether this machine can train, and what to change.", _EPILOG
    )
    parser.add_argument(
        "--config", default="g2l_breast", metavar="NAME", help="config of the run, or its path"
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from g2l_plugin.doctor.checks import run_checks

    # The name of a file may have any bytes.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    counts = dict.fromkeys(_STYLES, 0)
    with console.status("Looking at this machine ..."):
        for title, finding in run_checks(options.config):
            counts[finding.mark] += 1
            mark = (f"{finding.mark:8}", _STYLES[finding.mark])
            line = Text.assemble(mark, f" {title:9} {finding.fact}")
            if finding.advice:
                line.append(f" {finding.advice}", "bold")
            # Never wrapped: commands are copied from it.
            console.print(line, soft_wrap=True)
    problems, warnings = (_number(counts[mark], mark) for mark in ("problem", "warning"))
    then = "Solve the problems, then" if counts["problem"] else "Next"
    is_path = Path(options.config).is_file()
    config = options.config if is_path else f"$(g2l config {options.config})"
    console.print(f"\n{problems}, {warnings}. {then}: eva fit --config {config}", soft_wrap=True)
    return int(counts["problem"] > 0)


def _number(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"
