"""`g2l report`: results of eva as tables and plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l report logs --output report
  g2l report teacher=logs/teacher student=logs/student --output report --reference teacher

LABEL=PATH names a model that has no name in its results. Open DIR/report.html to look at the
report; DIR/report.csv has all values.
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "report",
        "Turns results of eva into tables and plots that compare models.",
        _EPILOG,
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULTS", help="folder of results, or one above them")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the report")
    add("--reference", metavar="MODEL", help="model to compare with; the best if not given")
    add("--speed", type=Path, metavar="JSON", help="speeds in turns, written by `g2l speed`")
    add("--no-published", action="store_true", help="leaves out published values")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.report.report import PAGE, write_report
    from g2l_plugin.report.terminal import print_report

    report = write_report(
        options.results,
        options.output,
        options.reference,
        not options.no_published,
        options.speed,
    )
    print_report(report)
    print(f"Look at: {options.output / PAGE}")
