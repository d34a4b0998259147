"""Jobs on the workers of a Dask cluster (https://distributed.dask.org)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import itertools
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger

from g2l_plugin import __version__
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.parallel.failures import OutOfTime, WorkerCrash

Job = TypeVar("Job")

_CONNECT_SECONDS = 5

_WAITING = 4096
"""Jobs that the scheduler has at a time: it is slow with a million."""

_REPORT_SECONDS = 2
"""How long a worker lives on after a job that hangs, to tell the scheduler."""


def run_on_cluster(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    scheduler: str,
    at_once: int | None = None,
    time_limit: float | None = None,
    needs: Sequence[Path] = (),
) -> Generator[tuple[Job, Any], None, None]:
    """Does what `run_jobs` says, on a cluster, with so many jobs at once; None leaves it to Dask.

    Dask runs a job again, on another worker, if its worker dies; how often is its setting
    `distributed.scheduler.allowed-failures`. What runs when the caller stops goes on to its end.
    """
    with _connect(scheduler) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        waiting = iter(jobs)
        running: dict[Any, Job] = {}
        finished = as_completed(loop=client.loop)
        try:
            while True:
                for job in itertools.islice(waiting, (at_once or _WAITING) - len(running)):
                    call = _Call(_run_job, function, job, time_limit, needs, __version__)
                    # The dashboard shows the first part of the key.
                    key = f"{function.__name__.strip('_')}-{uuid.uuid4().hex}"
                    future = client.submit(pickle.loads, pickle.dumps(call), key=key)
                    running[future] = job
                    finished.add(future)
                if not running:
                    return
                future = next(finished)
                try:
                    result = future.result()
                except OutOfTime as error:
                    result = error
                except KilledWorker as error:
                    result = WorkerCrash(in_one_line(error))
                except ImportError as error:
                    raise UserError(
                        f"A worker of {scheduler} cannot import what it needs ({error}). Install "
                        f"g2l-plugin {__version__} in the environment of all workers."
                    ) from error
                yield running.pop(future), result
        except CancelledError as error:
            raise UserError(
                f"The scheduler {scheduler} is gone. Start it, and run the same command again."
            ) from error
        finally:
            client.cancel(list(running))


def check_scheduler(address: str) -> None:
    """Checks that a Dask scheduler answers.

    Raises:
        UserError: Dask is not installed, or no scheduler answers within some seconds.
    """
    if importlib.util.find_spec("distributed") is None:
        raise UserError("A cluster (--scheduler) needs Dask: pip install 'g2l-plugin[cluster]'")
    try:
        # In a thread, because a notebook has a loop of its own.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _greet(address)).result()
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        cause = in_one_line(error) or f"it is silent for {_CONNECT_SECONDS} s"
        raise UserError(
            f"No Dask scheduler answers at {address!r}: {cause}. Expected the address that "
            "`dask scheduler` prints, as tcp://host:8786."
        ) from error


@contextlib.contextmanager
def _connect(address: str) -> Iterator[Any]:
    """Connects with a scheduler, and says where its dashboard is."""
    check_scheduler(address)
    from distributed import Client

    with Client(address, timeout=_CONNECT_SECONDS, set_as_default=False) as client:
        facts = client.scheduler_info(n_workers=-1)
        dashboard = f" Dashboard: {client.dashboard_link}" if facts["services"] else ""
        logger.info(f"Scheduler {address}, workers: {len(facts['workers'])}.{dashboard}")
        if not facts["workers"]:
            logger.warning(f"The scheduler {address} has no worker yet: waiting for the first.")
        yield client


async def _greet(address: str) -> None:
    """Raises an error if there is no scheduler: a client would wait for one that is silent."""
    from distributed.core import rpc
    from distributed.security import Security

    options = Security().get_connection_args("client")
    async with rpc(address, timeout=_CONNECT_SECONDS, connection_args=options) as server:
        found = (await asyncio.wait_for(server.identity(), _CONNECT_SECONDS + 1))["type"]
    if found != "Scheduler":
        raise ValueError(f"this is the address of a {found.lower()}")


class _Call:
    """A call that is made where it is unpickled.

    Scheduler and workers unpickle a task when it arrives, and hang if they cannot import what is in
    it. These bytes are unpickled by the task, which then fails as any other.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


def _run_job(
    function: Callable[[Any], Any],
    job: Any,
    time_limit: float | None,
    needs: Sequence[Path],
    version: str,
) -> Any:
    """Runs a job on a worker, whose process ends if the job takes longer than its limit."""
    here = f"The worker on {socket.gethostname()}"
    if version != __version__:
        raise UserError(
            f"{here} has g2l-plugin {__version__}, and this machine {version}. Install the same."
        )
    for path in needs:
        if not path.exists():
            raise UserError(
                f"{here} does not see {path}. All machines of a cluster must see the same folders "
                "under the same names: put slides and results on a shared disk."
            )
    # A thread cannot be stopped from outside, so that a job that hangs takes its process with it.
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
    threading.Thread(target=_settle, args=(outcome, function, job), daemon=True).start()
    concurrent.futures.wait([outcome], time_limit)
    if not outcome.done():
        threading.Timer(_REPORT_SECONDS, os._exit, (1,)).start()
        raise OutOfTime("the job took longer than its time limit")
    return outcome.result()


def _settle(
    outcome: concurrent.futures.Future[Any], function: Callable[[Any], Any], job: Any
) -> None:
    try:
        outcome.set_result(function(job))
    except BaseException as error:
        outcome.set_exception(error)
