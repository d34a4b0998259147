"""How many CPU cores a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

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
