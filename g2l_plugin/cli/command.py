"""What the commands of `g2l` share. They import heavy libraries only when they run."""

from __future__ import annotations

import argparse
from typing import Any

Commands = Any
"""The subparsers of argparse, which has no public name for their type."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that are set, and prints the examples unchanged."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if not action.default else super()._get_help_string(action)


def add_command(
    commands: Commands, name: str, summary: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Adds the parser of a command, with examples below its options."""
    return commands.add_parser(
        name, help=summary, description=summary, epilog=epilog, formatter_class=HelpFormatter
    )


def add_workers(parser: Any) -> None:
    """Adds what a command's jobs run on: processes of this machine, or a cluster.

    Args:
        parser: The command's parser, or one of its groups.
    """
    add = parser.add_mutually_exclusive_group().add_argument
    add("--workers", type=int, help="processes; one per usable CPU core if not given")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask scheduler whose workers do it, as tcp://host:8786",
    )


def shard(text: str) -> tuple[int, int]:
    """Reads `--shard I/N`: the I-th of N parts, I from 1."""
    part, _, n_parts = text.partition("/")
    if not (part.isdecimal() and n_parts.isdecimal() and 1 <= int(part) <= int(n_parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, as 3/16, got {text!r}")
    return int(part), int(n_parts)
