"""The error for problems that the user can fix."""

import itertools
import re

_MAX_LENGTH = 200
"""Characters of a library's message that fit into one line of ours."""

_REPORTS = re.compile(
    r"^\s*g2l_plugin\.errors\.UserError: (?P<raised>.+)$"  # the traceback of another process
    r"|UserError raised while resolving interpolation: (?P<resolver>.+)$",  # OmegaConf
    re.MULTILINE,
)

_FIELD = re.compile(r'Parser key "(.+?)":')
_VALUE = re.compile(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", re.MULTILINE)
_TYPE = re.compile(r"<class '([\w.]+)'>|typing\.(Literal\[.*?\])")
_CLASS = re.compile(r"Problem with given class_path '(.+?)':\s*(.+)")


class UserError(RuntimeError):
    """An error that says what was given, what was expected and what to do next, in a line or two.

    eva's command line prints it without a traceback and exits with status 1. In a Python session it
    is an ordinary exception.
    """

    def __init__(self, message: str = "") -> None:
        """Initializes the error.

        Args:
            message: The message. A file or a column may have any name: what cannot be printed, and
                would end the line, is written as in Python's strings. Of the traceback of another
                process, with which PyTorch raises its error again, the message is taken.
        """
        message = message_in(message) or message
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def message_in(report: str) -> str | None:
    """Finds the message of a `UserError` in a worker's traceback or a library's own error."""
    found = [match["raised"] or match["resolver"] for match in _REPORTS.finditer(report)]
    return found[-1] if found else None


def in_one_line(error: BaseException | str) -> str:
    """The message of a library's error, as part of one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} …"


def wrong_field_in(report: str) -> str | None:
    """Finds what is wrong in a config, in jsonargparse's report of it.

    Args:
        report: The report. It says which field of which class is wrong, from the outermost inwards.

    Returns:
        In one line the innermost field, its value and what is expected, or its class and what is
        wrong with that; None where several fields may be meant, or none.
    """
    fields = list(_FIELD.finditer(report))
    columns = [field.start() - report.rfind("\n", 0, field.start()) for field in fields]
    if not fields or any(outer >= inner for outer, inner in itertools.pairwise(columns)):
        return None
    field, rest = fields[-1][1], report[fields[-1].end() :]
    value = _VALUE.search(rest)
    if value is None:
        return None
    found = rest[: value.start()].partition("Given value type:")[0]
    if of_class := _CLASS.search(found):
        return in_one_line(f"{field}: {of_class[1]}: {of_class[2]}")
    types = _TYPE.findall(found)
    names = dict.fromkeys(name or literal for name, literal in types)
    expected = " or ".join("null" if name == "NoneType" else name for name in names)
    return in_one_line(f"{field} is {value[1]!r}: expected {expected}") if expected else None
