"""`g2l config`: the eva configs that the package ships."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l config
  eva fit --config $(g2l config quickstart)
  SLIDES_ROOT=/data/TCGA-BRCA eva fit --config $(g2l config g2l_breast)
  g2l config g2l_breast --copy configs
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "config",
        "Lists the configs for eva, prints the path of one, or copies it.",
        _EPILOG,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="a config; without it, all are listed")
    add("--copy", type=Path, metavar="DIR", help="copies the config into a folder, for editing")
    parser.set_defaults(command=_run, parser=parser)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.config_files import copy_config, find_config

    if options.name is None:
        if options.copy is not None:
            options.parser.error("--copy needs the NAME of a config")
        _print_list()
    elif options.copy is not None:
        print(copy_config(options.name, options.copy))
    else:
        print(find_config(options.name).resolve())


def _print_list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from g2l_plugin.config_files import list_configs

    table = Table("name", "", box=box.SIMPLE_HEAD)
    for name, summary in list_configs().items():
        table.add_row(name, summary)
    Console(soft_wrap=True).print(table)
    print("Run one: eva fit --config $(g2l config NAME), or eva predict_fit for benchmarks/...")
