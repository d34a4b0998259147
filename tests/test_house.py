"""The structure of the package: which room knows which."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "g2l_plugin"


def test_imports_go_one_way():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    result = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def imports_in_functions(path):
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "g2l_plugin"
                ):
                    yield node.module
                if isinstance(node, ast.Import):
                    yield from (n.name for n in node.names if n.name.startswith("g2l_plugin"))


def test_an_import_in_a_function_only_keeps_the_start_light():
    light = {PACKAGE / "registration.py", *(PACKAGE / "cli").glob("*.py")}
    found = {
        str(path.relative_to(PACKAGE)): list(imports_in_functions(path))
        for path in PACKAGE.rglob("*.py")
        if path not in light
    }
    assert not {path: modules for path, modules in found.items() if modules}


def test_the_paper_is_read_in_one_folder():
    folder = PACKAGE / "distillation"
    assert sum(len(path.read_text().splitlines()) for path in folder.glob("*.py")) < 1000


@pytest.mark.parametrize("name", ["numpy", "torch", "eva", "pandas"])
def test_the_command_line_starts_light(name):
    code = f"import g2l_plugin.cli, sys; print({name!r} in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
