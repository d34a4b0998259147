"""Runs the jobs of a benchmark, here or on a cluster, and reports on what they gave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loguru import logger

from g2l_plugin.benchmark.jobs import Job, find_session
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.parallel import jobs as parallel
from g2l_plugin.parallel.failures import WorkerCrash
from g2l_plugin.report.report import Report, write_report

REPORT = "report"
"""Folder of the report, in the folder of a benchmark."""

_NO_REFERENCE = "not run, because the reference that it is compared with failed"

Run = Callable[[Job], str | None]
"""Runs a job; returns why it failed, in a line, or None."""


def find_eva() -> str:
    """Finds eva's command: `eva` if it is on the PATH, else the path of the one beside Python.

    Raises:
        UserError: There is none.
    """
    if shutil.which("eva"):
        return "eva"
    beside = Path(sys.executable).with_name("eva")
    if not beside.is_file():
        raise UserError("The command `eva` is not on the PATH. Install it: pip install g2l-plugin")
    return str(beside)


def run_jobs(jobs: Sequence[Job], run: Run) -> dict[str, str]:
    """Runs the jobs in their order, and goes on when one fails.

    Args:
        jobs: The jobs. One that compares with a reference follows the reference's.
        run: Runs a job.

    Returns:
        Why jobs failed, by their names.
    """
    failures: dict[str, str] = {}
    without_embeddings: set[Path] = set()
    for number, job in enumerate(jobs, start=1):
        logger.info(f"{number} of {len(jobs)}: {job.name}")
        if job.teacher in without_embeddings:
            problem: str | None = _NO_REFERENCE
        else:
            problem = run(job)
        if problem is not None:
            failures[job.name] = problem
            without_embeddings.add(job.embeddings)
    return failures


def run_jobs_on_cluster(
    jobs: Sequence[Job], scheduler: str, needs: Sequence[Path]
) -> dict[str, str]:
    """Runs the jobs on the workers of a Dask cluster, and goes on when one fails.

    A worker runs one at a time, in the directory and with the variables of the user. Those that
    compare with a reference wait for all references.

    Args:
        jobs: The jobs.
        scheduler: Address of the scheduler.
        needs: Absolute paths of files and folders that each worker must see.

    Returns:
        Why jobs failed, by their names.

    Raises:
        UserError: The cluster cannot be used.
    """
    failures: dict[str, str] = {}
    without_embeddings: set[Path] = set()
    here, n_ended = Path.cwd(), 0
    for compared in (False, True):
        calls = []
        for job in jobs:
            if job.teacher in without_embeddings:
                failures[job.name] = _NO_REFERENCE
            elif (job.teacher is not None) is compared:
                calls.append(_Call(job, here, job.chosen(os.environ)))
        outcomes = parallel.run_jobs(_run_eva_there, calls, scheduler=scheduler, needs=needs)
        with contextlib.closing(outcomes):
            for call, outcome in outcomes:
                n_ended += 1
                logger.info(f"{n_ended} of {len(jobs)} has ended: {call.job.name}")
                if isinstance(outcome, WorkerCrash):
                    outcome = f"killed each worker that tried it ({outcome})"
                if outcome is not None:
                    failures[call.job.name] = outcome
                    without_embeddings.add(call.job.embeddings)
    return failures


@dataclasses.dataclass(frozen=True)
class _Call:
    """A job with what a worker needs of the place where its user is."""

    job: Job
    folder: Path
    variables: dict[str, str]


def _run_eva_there(call: _Call) -> str | None:
    return run_eva(call.job, find_eva(), call.folder, call.variables)


def run_eva(
    job: Job,
    eva: str,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str | None:
    """Runs a job's command and passes on what it says.

    Args:
        job: The job.
        eva: The command `eva`.
        folder: Working directory; None is that of this process.
        variables: Variables beside those of this process's environment.

    Returns:
        The last line of what it said if it fails; else None.
    """
    process = subprocess.Popen(
        job.arguments(eva),
        env=job.environment({**os.environ, **(variables or {})}),
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    tail = b""
    try:
        # By bytes and not by lines: progress bars end none.
        while block := process.stderr.read1(1 << 16):  # type: ignore[attr-defined]
            sys.stderr.buffer.write(block)
            sys.stderr.buffer.flush()
            tail = (tail + block)[-(1 << 16) :]
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status == 0:
        return None
    lines = tail.decode(errors="replace").replace("\r", "\n").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    last = (errors or said or [f"exit status {status}"])[-1]
    return in_one_line(last.removeprefix("error: "))


def report_on(jobs: Sequence[Job], output: Path, reference: str | None) -> Report | None:
    """Writes the report on the newest session of each job.

    Args:
        jobs: The jobs, those that were done before included.
        output: Folder of the benchmark.
        reference: Label of the model that others are compared with.

    Returns:
        The report; None if there is no session.
    """
    sessions = [session for job in jobs if (session := find_session(job)) is not None]
    if not sessions:
        return None
    if reference not in {session.model for session in sessions}:
        reference = None
    folders = [str(session.folder) for session in sessions]
    return write_report(folders, output / REPORT, reference)
