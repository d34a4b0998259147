"""The reference of the documentation, against the parser and the configs that it is made from."""

import functools
import re

import pytest
import yaml
from site_reference import commands_page, read_variables, variables_page

from g2l_plugin.cli import main
from g2l_plugin.config_files import load_config


def test_a_default_may_be_another_variable():
    text = "logs/${oc.env:LABEL, ${oc.env:NAME, vit}}/${oc.env:SIZE, {a: 1}}/${oc.env:BARE}"
    assert list(read_variables(text)) == [
        ("LABEL", "$NAME or vit"),
        ("NAME", "vit"),
        ("SIZE", "{a: 1}"),
        ("BARE", ""),
    ]


@functools.cache
def rows():
    training, _, _ = variables_page().partition("## Benchmarks")
    lines = [line for line in training.splitlines() if re.match(r"\| `[A-Z]", line)]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def value_at(config, field):
    for name in field.split("."):
        if isinstance(config, list):
            (config,) = (item for item in config if item["class_path"].endswith(f".{name}"))
        elif name not in config:
            config = config["init_args"][name]
        else:
            config = config[name]
    return config


@pytest.mark.parametrize("number, name", [(2, "g2l_breast"), (3, "g2l_robust"), (4, "g2l_small")])
def test_defaults_and_fields_are_those_of_the_config_that_runs(number, name, monkeypatch):
    for variable, *_ in rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CANCER", "lung")
    table = {row[0]: row for row in rows() if row[number] and row[0] != "CANCER"}
    assert len(table) > 50
    config = load_config(name)
    for variable, row in table.items():
        default = row[number].replace("$CANCER", "lung")
        if variable == "BENCHMARK_CONFIG" and name != "g2l_breast":
            continue  # it depends on the cancer
        value = value_at(config, row[1])
        written = "null" if value is None else str(value)  # most variables are text
        assert yaml.safe_load(default) == yaml.safe_load(written), variable


@pytest.mark.parametrize("command", ["doctor", "prepare", "prepare tiger", "report"])
def test_a_command_has_the_help_that_it_prints(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "90")  # argparse leaves two of them free
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    printed = capsys.readouterr().out.rstrip()
    assert f"# g2l {command}\n\n```text\n{printed}\n```" in commands_page()
