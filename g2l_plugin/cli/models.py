"""`g2l models`: the known encoders."""

from __future__ import annotations

import argparse

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l models
  TEACHER=hf-hub:paige-ai/Virchow2 eva fit --config configs/g2l_breast.yaml
"""
_COLUMNS = ("name", "source", "M parameters", "width", "input", "licence", "gated", "cached")
_NUMBERS = ("M parameters", "width", "input")


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "models",
        "Lists known encoders, for TEACHER and STUDENT; others load too.",
        _EPILOG,
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from g2l_plugin.encoders.known import KNOWN_ENCODERS

    table = Table(box=box.SIMPLE_HEAD)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    for known in KNOWN_ENCODERS.values():
        table.add_row(
            known.name,
            known.source,
            f"{known.parameters / 1e6:,.1f}",
            f"{known.embedding_dim}",
            f"{known.input_size}",
            known.license or ("see its card" if known.repo_id else ""),
            "yes" if known.gated else "",
            "yes" if known.is_cached() else "",
        )
    # As wide as the table: a source that is cut off is of no use.
    Console(width=Console(width=1000).measure(table).maximum).print(table)
    print(
        "Also hf-hub:org/name[@revision], local-dir:path, timm:name and eva:name (eva's registry)."
    )
