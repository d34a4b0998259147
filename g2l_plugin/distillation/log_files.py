"""Loggers that cannot write: that is told, and the run goes on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loguru import logger

_METHODS = ("log_metrics", "save", "finalize")


@contextlib.contextmanager
def may_fail(loggers: Iterable[Any]) -> Iterator[None]:
    """Has loggers that cannot write, as on a full disk, say so once while the block runs.

    Lightning would end the run with what they raise.

    Args:
        loggers: Lightning's loggers.
    """
    told: list[OSError] = []

    def attempt(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                # Lightning's for TensorBoard wraps what TensorBoard raises.
                reason = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(reason, OSError):
                    raise
                if not told:
                    logger.warning(f"Nothing more is logged: {reason}. The run goes on.")
                told.append(reason)

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
