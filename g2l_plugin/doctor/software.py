"""Checks of Python, of the installed packages, and of eva's knowledge of this one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from g2l_plugin.doctor.finding import Finding, ok, problem, warning
from g2l_plugin.errors import in_one_line
from g2l_plugin.planning.settings import Settings

_PACKAGE = "g2l-plugin"
_SWITCHES = ("G2L_PLUGIN_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")
_SHOWN = ("torch", "torchvision", "timm", "kaiko-eva", "lightning", "jsonargparse")
_REASONS = {"jsonargparse": "newer ones cannot parse eva's own configs"}
_BACKBONE = "g2l/student"


def check_python(settings: Settings) -> list[Finding]:
    """Whether this Python may run the package."""
    try:
        expected = importlib.metadata.metadata(_PACKAGE)["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        expected = ""
    system = f"{platform.system()} {platform.machine()}"
    return [judge_python(platform.python_version(), expected, system)]


def judge_python(version: str, expected: str, system: str) -> Finding:
    """Judges a version of Python by what the package requires, e.g. `>=3.10`."""
    if not SpecifierSet(expected).contains(version, prereleases=True):
        return problem(
            f"Python {version}, expected {expected}.", "Make an environment with such a Python."
        )
    if system.startswith("Windows"):
        return warning(f"Python {version} on {system}, where this was not tried.", "Use Linux.")
    return ok(f"Python {version} on {system}.")


def check_packages(settings: Settings) -> list[Finding]:
    """Whether the installed packages are those that this one requires."""
    try:
        required = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [
            problem(
                "g2l-plugin is not installed, only its folder is there: eva will not find it.",
                "pip install . (in that folder)",
            )
        ]
    installed = {d.name.lower().replace("_", "-"): d.version for d in _distributions()}
    extras = {"packed"} if settings.packed_root else set()
    return judge_packages(required, installed, extras)


def judge_packages(
    required: Sequence[str], installed: Mapping[str, str], extras: set[str]
) -> list[Finding]:
    """Judges versions by requirements.

    Args:
        required: Requirements, as in a package's metadata.
        installed: Versions by name, in lower case and with hyphens.
        extras: Extras that are needed too.

    Returns:
        A problem for each requirement that is not met, or one finding that all are.
    """
    needed = [
        requirement
        for requirement in map(Requirement, required)
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]
    problems = []
    for requirement in needed:
        name = requirement.name.lower().replace("_", "-")
        version = installed.get(name)
        if version and requirement.specifier.contains(version, prereleases=True):
            continue
        why = f" ({_REASONS[name]})" if name in _REASONS and version else ""
        has = f"{name} {version} is installed" if version else f"{name} is not installed"
        requirement.marker = None
        problems.append(
            problem(
                f"{has}, expected {requirement.specifier or 'any version'}{why}.",
                f"pip install '{requirement}'",
            )
        )
    shown = ", ".join(f"{name} {installed[name]}" for name in _SHOWN if name in installed)
    return problems or [ok(f"All {len(needed)} required packages are there: {shown}.")]


def check_torchvision(settings: Settings) -> list[Finding]:
    """Whether torch, torchvision and timm can be imported together."""
    try:
        import torch
        import torchvision

        _ = torchvision.ops.nms, torch.ops.torchvision.nms  # its part in C++, made for one torch
    except Exception as error:
        return [
            problem(
                f"torch, torchvision or timm cannot be imported: {in_one_line(error)}.",
                "Install the two that match: pip install --force-reinstall torch torchvision",
            )
        ]
    return []


def check_eva(settings: Settings) -> list[Finding]:
    """Whether `eva` on the command line is that of this environment, and knows this package."""
    command = shutil.which("eva")
    findings = judge_command(command, Path(sys.executable).parent)
    off = [name for name in _SWITCHES if os.environ.get(name) == "0"]
    names: Sequence[str] = []
    if not off:
        from eva.vision.models.networks.backbones import backbone_registry

        names = backbone_registry.entries()
    return [*findings, judge_registry(off, names)]


def judge_command(command: str | None, environment: Path) -> list[Finding]:
    """Judges where the shell finds `eva`, None if nowhere, by the folder of this Python."""
    if command is None:
        return [
            problem(
                "The shell does not find the command eva.",
                f"Activate the environment, or call {environment / 'eva'}",
            )
        ]
    if Path(command).parent.resolve() != environment.resolve():
        return [
            warning(
                f"The shell's eva is {command}, of another environment than this g2l.",
                f"Call {environment / 'eva'}, or activate that environment.",
            )
        ]
    return []


def judge_registry(switched_off: Sequence[str], names: Sequence[str]) -> Finding:
    """Judges eva's registry of backbones.

    Args:
        switched_off: Variables that keep this package out of eva.
        names: The backbones that eva knows.
    """
    if switched_off:
        name = switched_off[0]
        return problem(f"{name} is 0: eva does not find this package.", f"unset {name}")
    if _BACKBONE not in names:
        return problem(
            f"eva does not know {_BACKBONE}: this package did not register itself.",
            "Install it again: pip install --force-reinstall --no-deps g2l-plugin (or a folder)",
        )
    return ok(f"eva finds this package ({_BACKBONE} is in its registry).")


def _distributions() -> list[importlib.metadata.Distribution]:
    return [d for d in importlib.metadata.distributions() if d.metadata["Name"]]
