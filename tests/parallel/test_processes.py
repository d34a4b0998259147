import gc
import multiprocessing
import re
import subprocess
import sys
import time

import pytest
from cluster_jobs import die_the_first_time, double
from garbage import left_to_this_process

from g2l_plugin.parallel import processes
from g2l_plugin.parallel.failures import OutOfTime, WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs


def test_every_job_is_done_once():
    assert sorted(run_jobs(double, [1, 2, 3, 3], 2)) == [(1, 2), (2, 4), (3, 6), (3, 6)]
    assert list(run_jobs(double, [])) == []


def test_a_job_that_kills_its_process_is_reported_and_all_others_run():
    results = dict(run_jobs(double, range(9), 3))
    assert isinstance(results.pop(7), WorkerCrash)
    assert results == {n: 2 * n for n in range(9) if n != 7}


def test_a_job_that_hangs_is_ended_and_all_others_run():
    results = dict(run_jobs(double, range(8, 20), 2, time_limit=0.5))
    assert isinstance(results.pop(9), OutOfTime)
    assert results == {n: 2 * n for n in range(8, 20) if n != 9}


def test_a_job_whose_process_died_is_tried_again(tmp_path):
    jobs = [tmp_path / name for name in "abc"]
    assert sorted(run_jobs(die_the_first_time, jobs, 2)) == [(job, "done") for job in jobs]


def collect(_):
    return gc.collect() >= 0


def test_the_garbage_of_this_process_is_not_finalized_in_those_it_starts(tmp_path):
    with left_to_this_process(tmp_path / "finalized"):
        assert list(run_jobs(collect, [0], 1)) == [(0, True)]


def test_it_is_the_same_where_processes_are_spawned_as_on_a_mac(monkeypatch):
    monkeypatch.setattr(processes, "_CONTEXT", multiprocessing.get_context("spawn"))
    results = dict(run_jobs(double, range(5, 10), 2, time_limit=2))
    assert [type(results.pop(n)) for n in (7, 9)] == [WorkerCrash, OutOfTime]
    assert results == {5: 10, 6: 12, 8: 16}


def test_an_exception_of_the_function_is_raised_with_its_traceback():
    with pytest.raises(ValueError, match="a hundred") as error:
        list(run_jobs(double, [1, 100], 2))
    assert "cluster_jobs.py" in str(error.value.__cause__)


def test_a_result_that_cannot_be_pickled_is_an_error():
    with pytest.raises(TypeError, match="the result cannot be pickled"):
        list(run_jobs(lambda number: lambda: number, [1], 1))


def write_slowly(path):
    time.sleep(0.3)
    path.touch()


def test_a_caller_that_stops_waits_for_the_jobs_that_run_and_cancels_the_rest(tmp_path):
    results = run_jobs(write_slowly, [tmp_path / str(number) for number in range(20)], 2)
    next(results)
    results.close()
    assert 2 <= len(list(tmp_path.iterdir())) <= 4
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
@pytest.mark.parametrize("n_free", [0, 3, 6, 9, 12])
def test_too_few_open_files_end_it_at_once_with_one_line(n_free):
    program = (
        "import os, resource, time\n"
        "from g2l_plugin.errors import UserError\n"
        "from g2l_plugin.parallel.jobs import run_jobs\n"
        f"limit = len(os.listdir('/proc/self/fd')) - 1 + {n_free}\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "try:\n"
        "    print(len(list(run_jobs(time.sleep, [0] * 8, 4))))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert re.fullmatch(
        r"8|4 processes cannot be started: Too many open files\. .*", run.stdout.strip()
    )
    assert run.stderr == ""
