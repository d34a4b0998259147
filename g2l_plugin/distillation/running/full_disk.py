"""Loggers that cannot write: a warning, and the run continues."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loguru import logger

_METHODS = ("log_metrics", "save", "finalize")


@contextlib.contextmanager
def tolerate_full_disk(loggers: Iterable[Any]) -> Iterator[None]:
    """Turns errors of loggers that cannot write, as on a full disk, into one warning.

    Lightning would end the run.

    Args:
        loggers: Lightning's loggers.
    """
    reported: list[OSError] = []

    def attempt(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                # Lightning's TensorBoard logger wraps what TensorBoard raises.
                reason = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(reason, OSError):
                    raise
                if not reported:
                    logger.warning(f"Logging stops: {reason}. The run continues.")
                reported.append(reason)

        return call

    loggers = list(loggers)
    for one in loggers:
        for name in _METHODS:
            setattr(one, name, attempt(getattr(one, name)))
    try:
        yield
    finally:
        for one in loggers:
            for name in _METHODS:
                delattr(one, name)
