"""Renders the Python file that plugs a student into a tool, without this package."""

from __future__ import annotations

import importlib.resources

import jinja2

from g2l_plugin.errors import UserError
from g2l_plugin.publishing.export.student import Student

FOLDER = "student"
"""Folder of the weights, beside the file."""


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FunctionLoader(
        lambda name: (
            importlib.resources.files("g2l_plugin.publishing.export")
            .joinpath(f"templates/{name}")
            .read_text(encoding="utf-8")
        )
    ),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)
_TEMPLATES.filters["python"] = repr


def file_name(tool: str) -> str:
    """The file for a tool, e.g. `lazyslide_student.py`."""
    return f"{tool}_student.py"


def render(tool: str, student: Student, hub: tuple[str, str] | None) -> tuple[str, str]:
    """Renders the file for a tool, and the lines that use it.

    Args:
        tool: Name of the template.
        student: The student.
        hub: Repository and commit of its weights; None for weights in the folder `student` beside
            the file.

    Returns:
        The text of the file, and the lines (which are in the file too).

    Raises:
        UserError: The tool counts in whole units, which the resolution is not.
    """
    micrometres = round(student.size * student.mpp, 6)
    if tool in ("trident", "atlaspatch"):
        _check_whole(10 / student.mpp, f"{tool} takes whole magnifications (10 / um/px)")
    if tool == "slideflow":
        _check_whole(micrometres, "Slideflow takes tiles of whole micrometres")
    module = _TEMPLATES.get_template(f"{tool}.py.jinja").make_module(
        {
            "student": student,
            "magnification": round(10 / student.mpp),
            "um": f"{micrometres:g}",
            "hub": hub,
            "folder": FOLDER,
        }
    )
    return str(module).lstrip("\n"), str(module.use).strip("\n")  # type: ignore[attr-defined]


def _check_whole(value: float, rule: str) -> None:
    if abs(value - round(value)) > 1e-3 or round(value) < 1:
        raise UserError(
            f"{rule}, and the student's is {value:.4g}. Export it at the nearest resolution that "
            "is one: --mpp 0.5, for example."
        )
