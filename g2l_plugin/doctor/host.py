"""Checks of the machine around the GPU: cores, memory, shared memory, open files."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
from pathlib import Path

from g2l_plugin.doctor.finding import Finding, gigabytes, ok, problem, warning
from g2l_plugin.doctor.needs import OPEN_FILES, host_memory, shared_memory
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.planning.settings import Settings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_SHARED = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Host:
    """The machine, as far as this process may use it.

    Attributes:
        cores: Usable CPU cores.
        memory: Memory in bytes that it may have; None if unknown.
        available: What of it is not in use now; None if unknown.
        shared: Free bytes in /dev/shm; None where there is none.
        open_files: Files that a process may open; None if unknown.
        forked: Whether Python starts its workers by fork.
    """

    cores: int
    memory: int | None
    available: int | None
    shared: int | None
    open_files: int | None
    forked: bool


def check_host(settings: Settings) -> list[Finding]:
    """Whether the machine can feed its devices."""
    return judge_host(find_host(), settings)


def find_host() -> Host:
    """Asks the system."""
    memory = available = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [int(t) for f in _CGROUP_LIMITS if (t := _read(f).strip()).isdigit()]
    if memory is not None:
        memory = min([memory, *limits])
    for line in _read(Path("/proc/meminfo")).splitlines():
        if memory is not None and line.startswith("MemAvailable:"):
            available = min(int(line.split()[1]) * 1024, memory)
    return Host(
        usable_cpus(),
        memory,
        available,
        shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else None,
        multiprocessing.get_context().get_start_method() == "fork",
    )


def judge_host(host: Host, settings: Settings) -> list[Finding]:
    """Judges the machine by the need of a run."""
    devices = settings.devices or 1
    workers = host.cores if settings.workers is None else settings.workers
    return [
        _judge_cores(host, workers, devices),
        *_judge_memory(host, workers, devices, settings),
        *_judge_shared(host, workers, devices, settings),
        *_judge_files(host, workers),
    ]


def _judge_cores(host: Host, workers: int, devices: int) -> Finding:
    """Judges the number of workers by the cores, of which a device needs one for itself."""
    fits = max(host.cores // devices - 1, 1)
    of_each = ", for each device" if devices > 1 else ""
    fact = (
        f"N_DATA_WORKERS={workers} (processes that read tiles{of_each}) on {host.cores} CPU cores."
    )
    return ok(fact) if workers <= fits else warning(fact, f"Set N_DATA_WORKERS={fits}")


def _judge_memory(host: Host, workers: int, devices: int, settings: Settings) -> list[Finding]:
    """Judges the memory for workers and buffer."""
    if host.memory is None:
        return []
    need = host_memory(settings, workers, devices)
    free = host.memory if host.available is None else host.available
    fact = (
        f"{gigabytes(free)} of memory free; needed are about {gigabytes(need)} "
        f"(N_DATA_WORKERS={workers}, BUFFER_TILES={settings.buffer_tiles})."
    )
    if need <= free:
        return [ok(fact)]
    advice = "Lower N_DATA_WORKERS (0.9 GB each), or BUFFER_TILES, or end other programs."
    return [problem(fact, advice) if need > host.memory else warning(fact, advice)]


def _judge_shared(host: Host, workers: int, devices: int, settings: Settings) -> list[Finding]:
    """Judges /dev/shm, which containers make small."""
    need = shared_memory(settings, workers, devices, host.forked)
    if host.shared is None or need <= host.shared:
        return []
    return [
        problem(
            f"/dev/shm has {gigabytes(host.shared)} free; data workers need {gigabytes(need)}.",
            f"Start the container with --shm-size={max(round(2 * need / 1e9), 1)}g, or set "
            "N_DATA_WORKERS=0",
        )
    ]


def _judge_files(host: Host, workers: int) -> list[Finding]:
    """Judges how many files a process may open."""
    need = OPEN_FILES + 4 * workers
    unlimited = host.open_files is None or host.open_files < 0
    if unlimited or need <= (host.open_files or 0):
        return []
    return [
        problem(
            f"A process may open {host.open_files} files, and needs {need}.",
            "Before the command: ulimit -n 4096",
        )
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
