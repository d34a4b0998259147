"""The one kind of error that a user can cause and mend."""


class UserError(RuntimeError):
    """What was given, what was expected and what to do next, in one or two lines.

    eva's command line prints it without a traceback and exits with status 1; in a Python session it
    is an ordinary exception.
    """
