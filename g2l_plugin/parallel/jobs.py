"""Running a function on many jobs, some of which may kill their process or never end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from g2l_plugin.parallel.cluster import run_on_cluster
from g2l_plugin.parallel.failures import WorkerCrash
from g2l_plugin.parallel.processes import run_in_processes

Job = TypeVar("Job")


def run_jobs(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    workers: int | None = None,
    time_limit: float | None = None,
    scheduler: str | None = None,
    needs: Sequence[Path] = (),
) -> Generator[tuple[Job, Any], None, None]:
    """Calls a function on each job and yields results in the order of completion.

    The jobs run in processes of this machine, or on a Dask cluster if its scheduler is given. One
    that kills its process is run again after all others, alone: memory may have run out, or it may
    have shared the process with another that kills it. An exception in the function is raised. A
    caller that stops iterating cancels the jobs that have not started.

    Args:
        function: Function of one job. It, the jobs and the results must be picklable.
        jobs: Its arguments.
        workers: Processes of this machine; None starts one per CPU core that is usable.
        time_limit: Seconds that a job may take; None is no limit.
        scheduler: Address of a Dask scheduler, as tcp://host:8786; None uses this machine.
        needs: Absolute paths of files and folders that each worker of a cluster must see.

    Yields:
        A job, and its result; or a `WorkerCrash` if it killed its process each time that it was
        tried, or `OutOfTime`.

    Raises:
        UserError: The processes cannot be started, or the cluster cannot be used.
    """

    def run(some: Sequence[Job], at_once: int | None) -> Generator[tuple[Job, Any], None, None]:
        if scheduler is None:
            return run_in_processes(function, some, at_once, time_limit)
        return run_on_cluster(function, some, scheduler, at_once, time_limit, needs)

    crashed = []
    with contextlib.closing(run(jobs, None if scheduler else workers)) as outcomes:
        for job, result in outcomes:
            if isinstance(result, WorkerCrash):
                crashed.append(job)
            else:
                yield job, result
    if crashed:
        yield from run(crashed, 1)
