"""What people call a model on a command line, turned into a source for `load_encoder`."""

from __future__ import annotations

import re
from pathlib import Path

from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.errors import UserError
from g2l_plugin.runs.run_folder import STUDENT

_SCHEME = re.compile(r"(hf-hub|local-dir|timm|eva|scratch|demo):.+")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def find_source(model: str) -> str:
    """Returns the source of a model that is named in one of the ways that people name it.

    Args:
        model: A source (`hf-hub:org/name`, `local-dir:path`, ...), the folder of a student, the
            folder of a run (`.../run_0`, or the session above it), a name that `g2l models` lists,
            or `org/name` on the Hub. A folder goes before a name.

    Raises:
        UserError: It is none of them, or the run has published no student.

    Examples:
        >>> from g2l_plugin.runs.model_names import find_source
        >>> find_source("h-optimus-0")
        'hf-hub:bioptimus/H-optimus-0'
        >>> find_source("org/breast_vitl14@v1")
        'hf-hub:org/breast_vitl14@v1'
    """
    if _SCHEME.fullmatch(model):
        return model
    folder = Path(model).expanduser()
    if folder.is_dir():
        for student in (folder, folder / STUDENT, folder / "run_0" / STUDENT):
            if (student / "config.json").is_file():
                return f"local-dir:{student}"
        raise UserError(
            f"{model} holds no student: there is no config.json in it or in its folder {STUDENT}. "
            "Give the folder of a student, or a run that has ended (g2l publish writes the student "
            "of one that has not)."
        )
    for known in KNOWN_ENCODERS.values():
        if known.name.lower() == model.lower():
            return known.source
    if _REPO_ID.fullmatch(model):
        return f"hf-hub:{model}"
    raise UserError(
        f"Unknown model {model!r}. Expected a folder of a student or of a run, a name that `g2l "
        "models` lists, hf-hub:org/name, local-dir:path, timm:name or eva:name."
    )


def absolute_source(source: str) -> str:
    """A source that is the same in any working directory.

    Examples:
        >>> from g2l_plugin.runs.model_names import absolute_source
        >>> absolute_source("local-dir:/models/../student"), absolute_source("timm:resnet18")
        ('local-dir:/models/../student', 'timm:resnet18')
    """
    scheme, _, rest = source.partition(":")
    return f"{scheme}:{Path(rest).expanduser().absolute()}" if scheme == "local-dir" else source
