"""The error for problems that the user can fix."""

import re

_MAX_LENGTH = 200
"""Characters of a library's message that fit into one line of ours."""

_REPORTS = re.compile(
    r"^\s*g2l_plugin\.errors\.UserError: (?P<raised>.+)$"  # the traceback of another process
    r"|UserError raised while resolving interpolation: (?P<resolver>.+)$",  # OmegaConf
    re.MULTILINE,
)


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
