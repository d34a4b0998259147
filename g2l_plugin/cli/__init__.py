"""`g2l`: the commands that have no place in eva's command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from g2l_plugin.cli import (
    benchmark,
    config,
    doctor,
    embed,
    export,
    index,
    invariance,
    models,
    pack,
    plan,
    prepare,
    publish,
    report,
    speed,
)
from g2l_plugin.errors import UserError

_COMMANDS = (
    config,
    plan,
    doctor,
    models,
    index,
    pack,
    publish,
    export,
    embed,
    prepare,
    benchmark,
    invariance,
    speed,
    report,
)
"""In the order in which a user meets them."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `g2l` with all its commands."""
    parser = argparse.ArgumentParser("g2l", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command of `g2l`; returns its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command continues from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `g2l ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
