"""One function over many jobs in several processes, of which any may die."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Job = TypeVar("Job")


class WorkerCrash(RuntimeError):
    """The process that did a job died: of a fault in a native library, or for want of memory."""


def run_in_processes(
    function: Callable[[Job], Any], jobs: Sequence[Job], workers: int | None = None
) -> Generator[tuple[Job, Any], None, None]:
    """Calls a function on each job and yields what it returns, as it comes.

    A job whose process dies is found by running those that were under way one by one; it yields a
    `WorkerCrash`, and all others still run. An exception of the function itself is raised. Whoever
    stops iterating waits only for jobs under way.

    Args:
        function: What to call; it must be picklable, as must be jobs and results.
        jobs: Its arguments.
        workers: Processes; None takes one per CPU core.

    Yields:
        A job, and its result or a `WorkerCrash`.
    """
    workers = workers or os.cpu_count() or 1
    waiting = dict(enumerate(jobs))
    while waiting:
        try:
            for number, result in _run_pool(function, waiting, min(workers, len(waiting))):
                yield waiting.pop(number), result
        except BrokenProcessPool:
            # Jobs start in order, and a few wait in the pool's pipe.
            for number in list(waiting)[: 2 * workers + 1]:
                try:
                    ((_, result),) = _run_pool(function, {number: waiting[number]}, 1)
                except BrokenProcessPool as error:
                    result = WorkerCrash(str(error))
                yield waiting.pop(number), result


def _run_pool(
    function: Callable[[Job], Any], jobs: dict[int, Job], workers: int
) -> Generator[tuple[int, Any], None, None]:
    # Forked where that is safe: a spawned process would import the caller's program anew.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(function, job): number for number, job in jobs.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Else whoever stops this would wait for every job that is still to be done.
            pool.shutdown(cancel_futures=True)
