"""The public names and the examples in their docstrings."""

import ast
import doctest
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import g2l_plugin

STUB = ROOT / "g2l_plugin" / "__init__.pyi"
NAMES = [
    alias.asname
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]
WITH_EXAMPLES = (
    "choose_cohort",
    "build_index",
    "load_encoder",
    "distil",
    "export_student",
    "publish_run",
    "embed_slides",
    "DemoTiles",
    "ManifestTiles",
    "KNNVoting",
    "RobustnessIndex",
    "linear_cka",
    "write_report",
)
"""One for each thing that a pathologist does, from the choice of slides to the report."""


def test_every_name_of_the_stub_is_there_and_no_other():
    assert sorted(g2l_plugin.__all__) == sorted([*NAMES, "__version__"])
    for name in NAMES:
        assert getattr(g2l_plugin, name).__doc__, name


def test_the_names_are_grouped_as_people_work():
    groups = re.findall(r"^# (\w+).*\.$", STUB.read_text(), re.MULTILINE)
    assert groups[1:8] == ["Choose", "Load", "Distil", "Publish", "Embed", "Evaluate", "Report"]


@pytest.mark.slow
def test_a_type_checker_knows_the_public_names(tmp_path):
    pytest.importorskip("mypy")
    code = "import g2l_plugin\ng2l_plugin.load_encoder('demo:teacher')\ng2l_plugin.no_such\n"
    (tmp_path / "user.py").write_text(code)
    # The sources of other packages are not read: that takes minutes, and says nothing of ours.
    settings = "[mypy]\nfollow_imports = skip\n[mypy-g2l_plugin.*]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "user.py"]
    found = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert re.findall(r'user.py:(\d+): error: .*"no_such"', found.stdout) == ["3"], found.stdout


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = [t for t in doctest.DocTestFinder().find(getattr(g2l_plugin, name), name) if t.examples]
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        output: list[str] = []
        result = runner.run(test, out=output.append)
        assert not result.failed, "".join(output)
