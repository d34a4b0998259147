import os
import signal

import pytest

from g2l_plugin.parallel import WorkerCrash, run_in_processes


def double(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 100:
        raise ValueError("a hundred")
    return 2 * number


def test_every_job_is_done_once():
    assert sorted(run_in_processes(double, [1, 2, 3, 3], 2)) == [(1, 2), (2, 4), (3, 6), (3, 6)]
    assert list(run_in_processes(double, [])) == []


def test_a_job_that_kills_its_process_is_reported_and_all_others_run():
    results = dict(run_in_processes(double, list(range(20)), 3))
    assert isinstance(results.pop(7), WorkerCrash)
    assert results == {n: 2 * n for n in range(20) if n != 7}


def test_an_exception_of_the_function_is_raised():
    with pytest.raises(ValueError, match="a hundred"):
        list(run_in_processes(double, [1, 100], 2))
