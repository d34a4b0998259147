"""Runs the jobs of a benchmark one after the other, and reports on what they gave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from loguru import logger

from g2l_plugin.benchmark.jobs import Job, find_session
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.report.report import Report, write_report

REPORT = "report"
"""Folder of the report, in the folder of a benchmark."""

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
            problem: str | None = "not run, because the reference that it is compared with failed"
        else:
            problem = run(job)
        if problem is not None:
            failures[job.name] = problem
            without_embeddings.add(job.embeddings)
    return failures


def run_eva(job: Job, eva: str) -> str | None:
    """Runs a job's command and passes on what it says; returns its last line if it fails."""
    process = subprocess.Popen(
        job.arguments(eva), env=job.environment(os.environ), stderr=subprocess.PIPE
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
