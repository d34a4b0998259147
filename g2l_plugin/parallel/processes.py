"""Jobs in processes of this machine, any of which may die or hang.

Python's own pools end with the first process that dies, do not say which job killed it, and have no
time limit.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any, TypeVar

from g2l_plugin.errors import UserError
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.parallel.failures import OutOfTime, WorkerCrash

Job = TypeVar("Job")

# Fork where that is safe: a spawned process imports the caller's program again.
_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def run_in_processes(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    workers: int | None = None,
    time_limit: float | None = None,
) -> Generator[tuple[Job, Any], None, None]:
    """Does what `run_jobs` says, in processes of this machine, and each job once."""
    waiting = iter(jobs)
    processes: list[_Process] = []
    outcomes: list[tuple[Job, Any]] = []
    workers = min(workers or usable_cpus(), len(jobs))
    try:
        while True:
            for process in [process for process in processes if not process.is_alive]:
                process.end()
                processes.remove(process)
            while len(processes) < workers:
                processes.append(_start(function, workers))
            idle = [process for process in processes if not process.is_busy]
            for process, job in zip(idle, waiting, strict=False):
                process.give(job, time_limit)
            yield from outcomes
            if not any(process.is_busy for process in processes):
                return
            outcomes = [(process.job, process.take()) for process in _wait(processes)]
    finally:
        # A job that runs may be writing a file: it is not stopped in the midst.
        while any(process.is_busy for process in processes):
            for process in _wait(processes):
                with contextlib.suppress(Exception):
                    process.take()
        for process in processes:
            process.end()


class _Process:
    """A process that runs one job at a time.

    Attributes:
        connection: Where its answers arrive.
        job: Its job, or the last one.
        is_busy: Whether it has a job.
        deadline: When the job has to be done, on the monotonic clock.
        is_alive: Whether it can take another job.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.job: Any = None
        self.is_busy = False
        self.deadline = math.inf
        self.is_alive = True
        self._process = _CONTEXT.Process(
            target=_serve, args=(function, theirs, self.connection), daemon=True
        )
        try:
            self._process.start()
        except OSError:
            self.connection.close()
            raise
        finally:
            theirs.close()  # so that its death ends the connection

    def give(self, job: Any, time_limit: float | None) -> None:
        """Gives it a job."""
        self.job = job
        self.is_busy = True
        self.deadline = time.monotonic() + (math.inf if time_limit is None else time_limit)
        with contextlib.suppress(OSError):  # it has died, as `take` will find
            self.connection.send((job,))

    def take(self) -> Any:
        """Takes the outcome of its job, or kills it if there is none; raises the job's error."""
        self.is_busy = False
        if not self.connection.poll():
            self._process.kill()  # and no waiting: a process that hangs in a disk stays a while
            self.is_alive = False
            return OutOfTime("the job took longer than its time limit")
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self.is_alive = False
            return WorkerCrash(f"the process died (exit code {self._process.exitcode})")
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """Ends it, if it has not died."""
        if self.is_alive:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self._process.join()
        self.connection.close()


def _start(function: Callable[[Any], Any], workers: int) -> _Process:
    try:
        return _Process(function)
    except OSError as error:
        raise UserError(
            f"{workers} processes cannot be started: {error.strerror}. Use fewer (--workers), "
            "or raise the system's limits (ulimit -n for open files, -u for processes)."
        ) from error


def _wait(processes: Sequence[_Process]) -> list[_Process]:
    """Waits for busy processes that have an answer, have died or are out of time."""
    busy = [process for process in processes if process.is_busy]
    seconds = min(process.deadline for process in busy) - time.monotonic()
    timeout = None if seconds == math.inf else max(seconds, 0)
    ready = wait([process.connection for process in busy], timeout)
    now = time.monotonic()
    return [process for process in busy if process.connection in ready or process.deadline <= now]


def _serve(function: Callable[[Any], Any], connection: Connection, other_end: Connection) -> None:
    """Is the life of a process: it answers each job with a result or an error."""
    other_end.close()  # so that the death of its parent ends the connection
    # What its parent left to be collected is the parent's: a finalizer that imports here, amid an
    # import of a job, fails the job under Python 3.11 and before (python/cpython#91351).
    gc.freeze()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while (message := connection.recv()) is not None:
            try:
                answer: Any = (function(*message), None)
            except Exception as error:
                answer = (None, ExceptionWithTraceback(error, error.__traceback__))
            try:
                connection.send(answer)
            except (AttributeError, TypeError, ValueError, pickle.PicklingError) as error:
                connection.send((None, TypeError(f"the result cannot be pickled: {error}")))
