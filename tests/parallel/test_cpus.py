"""How many CPU cores a process may use."""

import os

import pytest

from g2l_plugin.parallel import cpus
from g2l_plugin.parallel.cpus import usable_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores, of which a job may use 8."""
    monkeypatch.setattr(cpus, "_CGROUP", tmp_path)
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
