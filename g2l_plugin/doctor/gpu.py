"""Checks of the GPUs: whether PyTorch can use them, their memory, bfloat16."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess

import torch

from g2l_plugin.doctor.device_memory import device_memory, is_measured, largest_fitting
from g2l_plugin.doctor.finding import Finding, gigabytes, ok, problem, warning
from g2l_plugin.errors import in_one_line
from g2l_plugin.planning.settings import Settings

_QUICKSTART = "Quickstart: eva fit --config $(g2l config quickstart)"
_CPU = "On a CPU, only the quickstart is practical: the recipe would take months."
_BF16 = (8, 0)
"""The first compute capability (Ampere) that computes bfloat16 itself.
Source: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html"""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch can use.

    Attributes:
        name: Its name.
        total: Its memory in bytes.
        free: What of it is free now.
        capability: Its compute capability.
    """

    name: str
    total: int
    free: int
    capability: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Devices:
    """What PyTorch and the driver say of the GPUs.

    Attributes:
        torch: PyTorch's version.
        built_for: The CUDA or ROCm that PyTorch is built for; "" for a CPU.
        gpus: The GPUs that PyTorch can use.
        error: Why it can use none.
        driver: The GPUs that the driver lists: `name, version of the driver` each.
        architectures: What PyTorch is compiled for, e.g. sm_90; empty if unknown.
        hidden: CUDA_VISIBLE_DEVICES; None if it is not set.
        apple: Whether there is a GPU of Apple.
    """

    torch: str
    built_for: str
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    driver: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    hidden: str | None = None
    apple: bool = False


def check_gpus(settings: Settings) -> list[Finding]:
    """Whether the GPUs can train the student."""
    return judge_gpus(find_devices(), settings)


def find_devices() -> Devices:
    """Asks PyTorch and the driver for the GPUs."""
    cuda = torch.version.cuda
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {torch.version.hip}" if torch.version.hip else ""
    gpus, error, architectures = [], "", []
    try:
        if built_for:
            torch.cuda.init()
            architectures = torch.cuda.get_arch_list() if cuda else []
        for number in range(torch.cuda.device_count() if built_for else 0):
            properties = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            capability = (properties.major, properties.minor)
            gpus.append(Gpu(properties.name, total, free, capability))
    except Exception as reason:
        error = in_one_line(reason)
    return Devices(
        torch.__version__,
        built_for,
        tuple(gpus),
        error,
        _list_by_driver(),
        tuple(architectures),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch.backends.mps.is_available(),
    )


def judge_gpus(devices: Devices, settings: Settings) -> list[Finding]:
    """Judges the GPUs by the need of a run."""
    if settings.accelerator == "cpu":
        return [warning(f"ACCELERATOR is cpu. {_CPU}", _QUICKSTART)]
    if not devices.gpus:
        return [_judge_none(devices, settings)]
    n_used = settings.devices or len(devices.gpus)
    if n_used > len(devices.gpus):
        return [
            problem(
                f"NUM_DEVICES is {n_used}, and there are {len(devices.gpus)} GPUs here.",
                f"Set NUM_DEVICES={len(devices.gpus)}",
            )
        ]
    used = devices.gpus[:n_used]
    smallest = min(used, key=lambda gpu: gpu.total)
    findings = [_judge_memory(smallest, len(used), settings)]
    fullest = min(used, key=lambda gpu: gpu.free)
    if findings[0].mark == "ok" and fullest.free < device_memory(settings):
        held = gigabytes(fullest.total - fullest.free)
        findings = [
            problem(
                f"{held} of {gigabytes(fullest.total)} of a {fullest.name} are held by others, and "
                f"training needs {gigabytes(device_memory(settings))}.",
                "End them (nvidia-smi lists them), or choose another GPU: CUDA_VISIBLE_DEVICES=1",
            )
        ]
    for gpu in {gpu.capability: gpu for gpu in used}.values():
        findings += _judge_generation(gpu, devices, settings)
    return findings


def _judge_none(devices: Devices, settings: Settings) -> Finding:
    """Why PyTorch has no GPU, and what to do."""
    if devices.driver and not devices.built_for:
        return problem(
            f"This machine has a GPU ({devices.driver[0]}), but torch {devices.torch} is built for "
            "a CPU.",
            "pip install --force-reinstall torch torchvision (not from an index of CPU builds)",
        )
    if devices.driver and devices.hidden is not None:
        return problem(
            f"CUDA_VISIBLE_DEVICES={devices.hidden!r} hides the GPU ({devices.driver[0]}).",
            "unset CUDA_VISIBLE_DEVICES",
        )
    if devices.driver:
        return problem(
            f"torch {devices.torch} ({devices.built_for}) cannot use the GPU and its driver "
            f"({devices.driver[0]}): {devices.error or 'no reason is given'}.",
            "Update the driver, or install a torch for an older CUDA.",
        )
    if settings.accelerator in ("gpu", "cuda"):
        fact = f"ACCELERATOR is {settings.accelerator}, and there is no GPU. {_CPU}"
        return problem(fact, _QUICKSTART)
    if devices.apple:
        return warning("The GPU is Apple's, on which the recipe was not tried.", _QUICKSTART)
    return warning(f"No GPU. {_CPU}", _QUICKSTART)


def _judge_memory(gpu: Gpu, n: int, settings: Settings) -> Finding:
    """Judges the memory of the smallest GPU."""
    batch = _batch(settings)
    need = device_memory(settings)
    about = "" if is_measured(settings) else "about "
    variable = "MICRO_BATCH_SIZE" if settings.micro_batch_size else "BATCH_SIZE"
    fact = (
        f"{n} x {gpu.name} with {gigabytes(gpu.total)}; {variable}={batch} needs {about}"
        f"{gigabytes(need)}."
    )
    if need <= gpu.total:
        return ok(fact)
    if (micro := largest_fitting(settings, gpu.total)) is None:
        return problem(fact, "Train on a larger GPU, or a smaller student: STUDENT=scratch:vits14")
    advice = f"Set MICRO_BATCH_SIZE={micro} (the same gradient, in less memory and more time)"
    return problem(fact, advice) if is_measured(settings) else warning(fact, advice)


def _judge_generation(gpu: Gpu, devices: Devices, settings: Settings) -> list[Finding]:
    """Judges what a GPU can compute."""
    findings = []
    if not _is_compiled_for(gpu.capability, devices.architectures):
        findings.append(
            problem(
                f"torch {devices.torch} is not compiled for a {gpu.name} (compute capability "
                f"{gpu.capability[0]}.{gpu.capability[1]}).",
                "Install an older torch, for an older CUDA, or use another GPU.",
            )
        )
    is_nvidia = devices.built_for.startswith("CUDA")
    if settings.precision.startswith("bf16") and is_nvidia and gpu.capability < _BF16:
        findings.append(
            warning(
                f"A {gpu.name} has no bfloat16 of its own (PRECISION={settings.precision}): slow.",
                "Set PRECISION=32-true TEACHER_DTYPE=float32, or use a GPU from 2020 or later.",
            )
        )
    return findings


def _is_compiled_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether code for one of the architectures runs on a GPU of this compute capability.

    Code for a GPU (sm_86) runs on later ones of its generation (8.9), and PTX (compute_86) on all
    later ones. Source: https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/
    """
    major, minor = capability
    found = [
        (kind, int(digits) // 10, int(digits) % 10)
        for name in architectures
        for kind, digits in re.findall(r"^(sm|compute)_(\d+)", name)
    ]
    return not found or any(
        (minor >= low if high == major else kind == "compute" and major > high)
        for kind, high, low in found
    )


def _batch(settings: Settings) -> int:
    return min(settings.micro_batch_size or settings.batch_size, settings.batch_size)


def _list_by_driver() -> tuple[str, ...]:
    """The GPUs that NVIDIA's driver lists; none without the driver."""
    if not (command := shutil.which("nvidia-smi")):
        return ()
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(
        f"{name.strip()}, driver {version.strip()}"
        for name, _, version in (line.rpartition(",") for line in answer.stdout.splitlines())
        if name and answer.returncode == 0
    )
