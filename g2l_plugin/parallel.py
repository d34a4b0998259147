"""Running a function on many jobs in processes, any of which may die."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from g2l_plugin.errors import UserError

Job = TypeVar("Job")


_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Number of CPU cores that this process may use, at least 1.

    `os.cpu_count` counts those of the machine, of which Slurm or a container may lend a few.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(int(min(cores, _cgroup_cpus())), 1)


def _cgroup_cpus() -> float:
    """CPU time per time that a container's limit gives, in cores; infinite without one."""
    try:
        if (limit := _CGROUP / "cpu.max").exists():  # version 2
            quota, period = limit.read_text().split()
        else:
            quota = (_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu" / "cpu.cfs_period_us").read_text()
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


class WorkerCrash(RuntimeError):
    """The process that ran a job died: a native library failed, or memory ran out."""


def run_in_processes(
    function: Callable[[Job], Any], jobs: Sequence[Job], workers: int | None = None
) -> Generator[tuple[Job, Any], None, None]:
    """Calls a function on each job and yields results in the order of completion.

    If a process dies, the jobs that may have been running are run again one by one. The job that
    kills its process yields a `WorkerCrash`; all others still run. An exception in the function is
    raised. A caller that stops iterating waits only for the running jobs.

    Args:
        function: Function of one job. It, the jobs and the results must be picklable.
        jobs: Its arguments.
        workers: Processes; None starts one per CPU core that is usable.

    Yields:
        A job, and its result or a `WorkerCrash`.

    Raises:
        UserError: The system does not let the processes start.
    """
    workers = workers or usable_cpus()
    waiting = dict(enumerate(jobs))
    while waiting:
        try:
            for number, result in _run_pool(function, waiting, min(workers, len(waiting))):
                yield waiting.pop(number), result
        except BrokenProcessPool:
            # Jobs start in order, and a few more wait in the pool's pipe.
            for number in list(waiting)[: 2 * workers + 1]:
                try:
                    ((_, result),) = _run_pool(function, {number: waiting[number]}, 1)
                except BrokenProcessPool as error:
                    result = WorkerCrash(str(error))
                yield waiting.pop(number), result


def _run_pool(
    function: Callable[[Job], Any], jobs: dict[int, Job], workers: int
) -> Generator[tuple[int, Any], None, None]:
    # Fork where that is safe: a spawned process imports the caller's program again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = multiprocessing.active_children()
    with contextlib.ExitStack() as stack:
        try:
            executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
            pool = stack.enter_context(executor)
            futures = {pool.submit(function, job): number for number, job in jobs.items()}
        except OSError as error:
            # Those that have started wait for jobs, and Python would wait for them at its end.
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            raise UserError(
                f"{workers} processes cannot be started: {error.strerror}. Use fewer (--workers), "
                "or raise the system's limits (ulimit -n for open files, -u for processes)."
            ) from error
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Otherwise a caller that stops iterating would wait for all remaining jobs.
            pool.shutdown(cancel_futures=True)
