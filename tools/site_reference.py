"""Writes the reference of the documentation while `mkdocs build` runs: nothing of it is kept.

mkdocs.yml names this file as a hook. Commands come from argparse, variables from the configs, and
the Python names from `g2l_plugin/__init__.pyi`, which mkdocstrings then documents.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

import g2l_plugin
from g2l_plugin.cli import build_parser
from g2l_plugin.config_files import copy_config, find_config, list_configs

_WIDTH = 88
"""Characters in a line of a command's help, which fit into a page's column."""

_TRAINING = ("g2l_breast", "g2l_robust", "g2l_small", "quickstart")
"""Configs whose defaults stand side by side."""

_BY_TASK = "by task"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; mkdocs calls it."""
    for name, text in (
        ("commands", commands_page()),
        ("variables", variables_page()),
        ("python", python_page()),
    ):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands_page() -> str:
    """Every command with its help."""
    lines = ["# Commands", "", "The output of `g2l COMMAND --help`."]
    for name, parser in _subcommands("g2l", build_parser()):
        parser.formatter_class = functools.partial(parser.formatter_class, width=_WIDTH)  # type: ignore[assignment]
        level = "#" * name.count(" ")
        lines += ["", f"#{level} {name}", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _subcommands(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:  # argparse has no public way
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield f"{name} {word}", command
                yield from _subcommands(f"{name} {word}", command)


def variables_page() -> str:
    """Every environment variable of the configs, with its default and the field that it sets."""
    lines = [
        "# Variables",
        "",
        "They are set before the command, as `BATCH_SIZE=64 eva fit --config ...`. `null` is none.",
        "What they mean: [the recipe](../recipe.md#variables), [evaluation](../evaluation.md).",
        "",
        "## Training",
        "",
        "`g2l` and `g2l_prostate` differ from `g2l_breast` in the folders and the benchmark.",
        "",
        f"| variable | field | {' | '.join(f'`{name}`' for name in _TRAINING)} |",
        "|---" * (2 + len(_TRAINING)) + "|",
    ]
    found = {config: _variables(config) for config in _TRAINING}
    fields = _first_fields(found)
    for name in sorted(fields):
        cells = (_cell(found[config].get(name, ("", ""))[1]) for config in _TRAINING)
        lines.append(f"| `{name}` | `{fields[name]}` | {' | '.join(cells)} |")
    lines += ["", "## Benchmarks", "", "| variable | field | default |", "|---|---|---|"]
    found = {config: _variables(config) for config in list_configs() if "/" in config}
    fields = _first_fields(found)
    for name in sorted(fields):
        defaults = {variables[name][1] for variables in found.values() if name in variables}
        default = _cell(*defaults) if len(defaults) == 1 else _BY_TASK
        lines.append(f"| `{name}` | `{fields[name]}` | {default} |")
    return "\n".join(lines) + "\n"


def _first_fields(found: dict[str, dict[str, tuple[str, str]]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for variables in found.values():
        for name, (field, _) in variables.items():
            fields.setdefault(name, field)
    return fields


def _cell(default: str) -> str:
    return f"`{default}`" if default else ""


def _variables(config: str) -> dict[str, tuple[str, str]]:
    """The variables of a config: the first field that each sets, and its default."""
    found: dict[str, tuple[str, str]] = {}
    # A recipe is written out for a cancer; CANCER itself is only in the config that includes it.
    named = mock.patch.dict(os.environ, {"CANCER": "$CANCER"})
    with tempfile.TemporaryDirectory() as folder, named:
        for path in (copy_config(config, Path(folder)), find_config(config)):
            for field, text in _texts(OmegaConf.to_container(OmegaConf.load(path))):
                for name, default in read_variables(text):
                    found.setdefault(name, (field, default))
    return found


def _texts(node: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a config, with where they are: classes by name, their arguments below."""
    if isinstance(node, str):
        yield field, node
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from _texts(value, field if key == "init_args" else f"{field}.{key}".lstrip("."))
    for value in node if isinstance(node, list) else ():
        name = str(value.get("class_path", "")) if isinstance(value, dict) else ""
        yield from _texts(value, f"{field}.{name.rpartition('.')[2]}".rstrip("."))


def read_variables(text: str) -> Iterator[tuple[str, str]]:
    """Finds `${oc.env:NAME, DEFAULT}` in a text, also within the default of another.

    >>> list(read_variables("logs/${oc.env:LABEL, ${oc.env:NAME, vit}}"))
    [('LABEL', '$NAME or vit'), ('NAME', 'vit')]
    """
    for match in re.finditer(r"\$\{oc\.env:(\w+),? ?", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield match[1], _plain(text[match.end() : end - 1])


def _plain(default: str) -> str:
    nested = re.compile(r"\$\{oc\.env:(\w+)(?:, ([^{}]*))?\}")
    while nested.search(default):
        default = nested.sub(
            lambda match: f"${match[1]}" + (f" or {match[2]}" if match[2] != "null" else ""),
            default,
        )
    return default.strip('"')


def python_page() -> str:
    """The public names, in the groups of the stub."""
    lines = [
        "# Python",
        "",
        "All of these are names of `g2l_plugin`: `from g2l_plugin import load_encoder`. Each is",
        "imported on first use. In Python, `help(name)` shows the methods of a class too.",
    ]
    stub = Path(g2l_plugin.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    _, _, body = stub.partition("\n\n")
    for line in body.splitlines():
        if line.startswith("# "):
            lines += ["", f"## {line.strip('# .')}"]
        elif match := re.match(r"from \.(\S+) import (\w+)", line):
            lines += ["", f"::: g2l_plugin.{match[1]}.{match[2]}"]
    return "\n".join(lines) + "\n"
