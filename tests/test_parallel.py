import os
import re
import signal
import subprocess
import sys

import pytest

from g2l_plugin import parallel
from g2l_plugin.parallel import WorkerCrash, run_in_processes, usable_cpus


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


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
@pytest.mark.parametrize("n_free", [0, 3, 6, 9, 12])
def test_too_few_open_files_end_it_at_once_with_one_line(n_free):
    program = (
        "import os, resource, time\n"
        "from g2l_plugin.errors import UserError\n"
        "from g2l_plugin.parallel import run_in_processes\n"
        f"limit = len(os.listdir('/proc/self/fd')) - 1 + {n_free}\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "try:\n"
        "    print(len(list(run_in_processes(time.sleep, [0] * 8, 4))))\n"
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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores, of which a job may use 8."""
    monkeypatch.setattr(parallel, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    return tmp_path


def test_cores_are_those_that_the_process_may_use(machine, monkeypatch):
    assert usable_cpus() == 8
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cpus() == 3


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1)]
)
def test_a_containers_limit_counts(machine, limit, cores):
    (machine / "cpu.max").write_text(limit)
    assert usable_cpus() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", 8), ("400000\n", 4)])
def test_a_limit_in_the_older_form_counts(machine, quota, cores):
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus() == cores
