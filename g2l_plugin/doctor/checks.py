"""All checks, one after the other; none of them can stop the others."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Iterator

from g2l_plugin.doctor.finding import Finding, problem, warning
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.planning.settings import read_settings

CHECKS = (
    ("Python", "g2l_plugin.doctor.software:check_python"),
    ("packages", "g2l_plugin.doctor.software:check_packages"),
    ("packages", "g2l_plugin.doctor.software:check_torchvision"),
    ("eva", "g2l_plugin.doctor.software:check_eva"),
    ("GPU", "g2l_plugin.doctor.gpu:check_gpus"),
    ("machine", "g2l_plugin.doctor.host:check_host"),
    ("disk", "g2l_plugin.doctor.disk:check_disk"),
    ("slides", "g2l_plugin.doctor.slide_folder:check_slides"),
    ("models", "g2l_plugin.doctor.hub:check_hub"),
)
"""Title and function of each check. By name: what a check imports may be what is broken."""


def run_checks(config: str) -> Iterator[tuple[str, Finding]]:
    """Runs all checks.

    Args:
        config: The config whose run is meant, by name or path.

    Yields:
        The title of a check and a finding of it, as soon as it is known.
    """
    try:
        settings = read_settings(config)
    except UserError as error:
        yield "settings", problem(str(error), "Then run g2l doctor again.")
        return
    except Exception as error:
        yield "settings", problem(f"{config} cannot be read: {_describe(error)}.", "Correct it.")
        return
    for title, name in CHECKS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings = pkgutil.resolve_name(name)(settings)
        except Exception as error:
            findings = [warning(f"This could not be checked: {_describe(error)}.")]
        for finding in findings:
            yield title, finding


def _describe(error: Exception) -> str:
    return in_one_line(f"{type(error).__name__}: {error}")
