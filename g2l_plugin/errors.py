"""The one kind of error that a user can cause and mend."""

import re

_MAX_SAID = 200
"""Characters of a library's own message that fit into one line of ours."""


class UserError(RuntimeError):
    """What was given, what was expected and what to do next, in one or two lines.

    eva's command line prints it without a traceback and exits with status 1; in a Python session it
    is an ordinary exception.
    """


def message_in(report: str) -> str | None:
    """Finds the message of a `UserError` in what is left of it as text: a traceback of a worker."""
    found = re.findall(r"^\s*g2l_plugin\.errors\.UserError: (.+)$", report, re.MULTILINE)
    return found[-1] if found else None


def in_one_line(error: BaseException | str) -> str:
    """What an error of a library says, as a part of one line."""
    said = " ".join(str(error).split()).rstrip(".")
    return said if len(said) <= _MAX_SAID else f"{said[:_MAX_SAID]} …"
