"""What is released: the wheel, its version and the files that name it."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import g2l_plugin
from g2l_plugin.publishing.export.export import PYTHON_TOOLS

PACKAGE = ROOT / "g2l_plugin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, built with this environment's hatchling and without network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files_in(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_the_wheel_has_every_file_of_the_package_and_every_config(wheel):
    configs = {f"configs/{name}": data for name, data in files_in(ROOT / "configs").items()}
    assert files_in(wheel / "g2l_plugin") == files_in(PACKAGE) | configs


def test_the_wheel_has_nothing_else(wheel):
    info = f"g2l_plugin-{g2l_plugin.__version__}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {"g2l_plugin", info}
    # A new kind of file is seen here before users download it.
    assert {PurePosixPath(name).suffix for name in files_in(wheel / "g2l_plugin")} == {
        *(".py", ".pyi", ".typed", ".yaml", ".jinja"),
        *(".csv", ".txt", ".json", ".md", ".safetensors"),
    }


def test_what_is_installed_runs_without_the_checkout(wheel, tmp_path):
    code = """
import pathlib, g2l_plugin
from g2l_plugin.config_files import list_configs
print(pathlib.Path(g2l_plugin.__file__).parents[1])
print(*list_configs())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel), "G2L_PLUGIN_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    folder, names = result.stdout.splitlines()
    assert folder == str(wheel)
    in_checkout = {p.stem for p in (ROOT / "configs").glob("*.yaml")}
    assert in_checkout == {name for name in names.split() if "/" not in name}


def test_every_file_names_the_same_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d.*)\] - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert (g2l_plugin.__version__, str(cited["date-released"])) == released[0]
    assert cited["version"] == g2l_plugin.__version__


def test_the_workflow_runs_the_test_command_of_the_readme():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    commands = [step["run"] for step in jobs["test"]["steps"] if "run" in step]
    assert re.findall(r"^pip install .*pytest$", (ROOT / "README.md").read_text(), re.M) == commands


def test_every_tool_of_an_export_is_tried_each_week():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "reach.yml").read_text())["jobs"]
    tried = [row["tool"] for row in jobs["tool"]["strategy"]["matrix"]["include"]]
    assert sorted(tried) == sorted([*PYTHON_TOOLS, "wsinfer"])


def test_every_package_that_is_imported_is_named_as_a_dependency():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "g2l_plugin"}
    requirements = importlib.metadata.requires("g2l-plugin")
    named = {canonicalize_name(Requirement(text).name) for text in requirements}
    of_module = importlib.metadata.packages_distributions()
    unnamed = {
        module
        for module in imported & set(of_module)
        if not named & {canonicalize_name(name) for name in of_module[module]}
    }
    assert unnamed == set()
