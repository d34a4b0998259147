import sys
from pathlib import Path

import pytest

from g2l_plugin.doctor.software import (
    check_torchvision,
    judge_command,
    judge_packages,
    judge_python,
    judge_registry,
)

REQUIRED = [
    "jsonargparse[omegaconf]<4.52,>=4.40",
    "torch>=2.6",
    "kaiko-eva[vision]<0.5,>=0.4.5",
    "litdata<0.3,>=0.2.76; extra == 'packed'",
    "pywin32>=1; sys_platform == 'win32'",
]
INSTALLED = {"jsonargparse": "4.51.0", "torch": "2.14.1+cpu", "kaiko-eva": "0.4.5"}


def test_what_is_installed_as_required_is_one_line():
    (finding,) = judge_packages(REQUIRED, INSTALLED, set())
    assert finding.mark == "ok" and "All 3 required" in finding.fact
    assert "torch 2.14.1+cpu" in finding.fact


def test_each_unmet_requirement_is_a_problem_with_its_command():
    installed = INSTALLED | {"jsonargparse": "4.53.1"}
    del installed["kaiko-eva"]
    newer, missing = judge_packages(REQUIRED, installed, set())
    assert (newer.mark, missing.mark) == ("problem", "problem")
    assert "jsonargparse 4.53.1 is installed, expected" in newer.fact
    assert "cannot parse eva's own configs" in newer.fact
    assert newer.advice == "pip install 'jsonargparse[omegaconf]<4.52,>=4.40'"
    assert missing.fact.startswith("kaiko-eva is not installed")
    assert missing.advice == "pip install 'kaiko-eva[vision]<0.5,>=0.4.5'"


def test_an_extra_is_required_only_where_it_is_needed():
    (finding,) = judge_packages(REQUIRED, INSTALLED, {"packed"})
    assert finding.advice == "pip install 'litdata<0.3,>=0.2.76'"
    installed = INSTALLED | {"litdata": "0.2.80"}
    assert judge_packages(REQUIRED, installed, {"packed"})[0].mark == "ok"


@pytest.mark.parametrize(
    ("version", "system", "mark"),
    [
        ("3.9.18", "Linux x86_64", "problem"),
        ("3.10.0", "Linux x86_64", "ok"),
        ("3.15.0rc1", "Darwin arm64", "ok"),
        ("3.12.1", "Windows AMD64", "warning"),
    ],
)
def test_python_and_system(version, system, mark):
    finding = judge_python(version, ">=3.10", system)
    assert finding.mark == mark and version in finding.fact


def test_an_eva_of_another_environment_or_none_is_told():
    here = Path("/env/bin")
    assert judge_command("/env/bin/eva", here) == []
    (none,) = judge_command(None, here)
    assert none.mark == "problem" and "/env/bin/eva" in none.advice
    (other,) = judge_command("/usr/bin/eva", here)
    assert other.mark == "warning" and "/usr/bin/eva" in other.fact


def test_a_package_that_eva_does_not_find_is_a_problem():
    assert judge_registry([], ["universal/vit", "g2l/student"]).mark == "ok"
    assert judge_registry([], ["universal/vit"]).mark == "problem"
    off = judge_registry(["G2L_PLUGIN_AUTOLOAD"], [])
    assert (off.mark, off.advice) == ("problem", "unset G2L_PLUGIN_AUTOLOAD")


def test_a_torchvision_that_cannot_be_imported_is_a_problem_with_its_command(settings, monkeypatch):
    assert check_torchvision(settings) == []
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (finding,) = check_torchvision(settings)
    assert finding.mark == "problem" and "torchvision" in finding.fact
    assert "pip install --force-reinstall torch torchvision" in finding.advice
