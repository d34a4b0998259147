import dataclasses

import pytest

from g2l_plugin.doctor.gpu import Devices, Gpu, find_devices, judge_gpus
from g2l_plugin.planning.settings import Model

GB = 1_000_000_000


def gpu(total=80, free=None, name="NVIDIA H100", capability=(9, 0)):
    free = total if free is None else free
    return Gpu(name, int(total * GB), int(free * GB), capability)


def devices(*gpus, **changes):
    built = ("sm_75", "sm_80", "sm_86", "sm_90", "compute_90")
    return dataclasses.replace(Devices("2.14.1", "CUDA 12.8", gpus, architectures=built), **changes)


def test_a_gpu_with_room_for_the_batch_is_fine(settings):
    (finding,) = judge_gpus(devices(gpu()), settings)
    assert finding.mark == "ok"
    assert "1 x NVIDIA H100 with 80.0 GB; BATCH_SIZE=32 needs 17.0 GB" in finding.fact


@pytest.mark.parametrize(
    ("total", "batch", "advised"), [(40, 128, 64), (24, 128, 32), (16, 32, 16), (12, 32, 8)]
)
def test_too_large_a_batch_is_a_problem_with_the_micro_batch_that_fits(
    settings, total, batch, advised
):
    settings = dataclasses.replace(settings, batch_size=batch)
    (finding,) = judge_gpus(devices(gpu(total)), settings)
    assert finding.mark == "problem"
    assert f"MICRO_BATCH_SIZE={advised} " in finding.advice
    mended = dataclasses.replace(settings, micro_batch_size=advised)
    assert judge_gpus(devices(gpu(total)), mended)[0].mark == "ok"


def test_a_gpu_that_cannot_hold_the_networks_needs_another_student(settings):
    (finding,) = judge_gpus(devices(gpu(6)), settings)
    assert finding.mark == "problem" and "STUDENT=scratch:vits14" in finding.advice


def test_an_estimate_that_was_not_measured_does_not_forbid(settings):
    other = dataclasses.replace(settings, student=Model("STUDENT", "hf-hub:org/unknown"))
    (finding,) = judge_gpus(devices(gpu(12)), other)
    assert finding.mark == "warning" and "needs about" in finding.fact


def test_memory_that_others_hold_is_told(settings):
    (finding,) = judge_gpus(devices(gpu(80, free=10)), settings)
    assert finding.mark == "problem"
    assert "70.0 GB of 80.0 GB of a NVIDIA H100 are held by others" in finding.fact


def test_the_smallest_of_the_used_gpus_decides(settings):
    both = devices(gpu(80), gpu(12, name="NVIDIA GeForce RTX 3060", capability=(8, 6)))
    assert judge_gpus(both, settings)[0].mark == "ok"  # NUM_DEVICES=1 uses the first
    two = judge_gpus(both, dataclasses.replace(settings, devices=2))
    assert two[0].mark == "problem" and "RTX 3060" in two[0].fact
    (three,) = judge_gpus(both, dataclasses.replace(settings, devices=3))
    assert (three.mark, three.advice) == ("problem", "Set NUM_DEVICES=2")


@pytest.mark.parametrize(
    ("changes", "accelerator", "mark", "expected"),
    [
        ({"built_for": ""}, "auto", "warning", "only the quickstart is practical"),
        ({}, "gpu", "problem", "there is no GPU"),
        ({"built_for": "", "apple": True}, "auto", "warning", "Apple's"),
        ({"driver": ("T4, driver 535",), "built_for": ""}, "auto", "problem", "built for a CPU"),
        (
            {"driver": ("T4, driver 470",), "error": "The NVIDIA driver is too old"},
            "auto",
            "problem",
            "(CUDA 12.8) cannot use the GPU and its driver (T4, driver 470): The NVIDIA driver is",
        ),
        (
            {"driver": ("T4, driver 535",), "hidden": "", "error": "No CUDA GPUs are available"},
            "auto",
            "problem",
            "CUDA_VISIBLE_DEVICES='' hides the GPU",
        ),
    ],
)
def test_no_gpu_is_told_with_its_reason(settings, changes, accelerator, mark, expected):
    settings = dataclasses.replace(settings, accelerator=accelerator)
    (finding,) = judge_gpus(devices(**changes), settings)
    assert finding.mark == mark and expected in finding.fact and finding.advice


def test_a_cpu_by_choice_is_told_whatever_gpus_there_are(settings):
    (finding,) = judge_gpus(devices(gpu()), dataclasses.replace(settings, accelerator="cpu"))
    assert finding.mark == "warning" and "quickstart" in finding.fact


def test_bfloat16_by_emulation_is_a_warning(settings):
    old = devices(gpu(32, name="Tesla T4", capability=(7, 5)))
    memory, bf16 = judge_gpus(old, settings)
    assert (memory.mark, bf16.mark) == ("ok", "warning") and "bfloat16" in bf16.fact
    assert len(judge_gpus(old, dataclasses.replace(settings, precision="32-true"))) == 1


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 1), False),
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((12, 0), True),
    ],
)
def test_a_gpu_that_torch_is_not_compiled_for_is_a_problem(settings, capability, runs):
    settings = dataclasses.replace(settings, precision="32-true")
    findings = judge_gpus(devices(gpu(capability=capability)), settings)
    assert any("not compiled" in finding.fact for finding in findings) != runs


def test_asking_this_machine_gives_an_answer():
    found = find_devices()
    assert found.torch and (found.gpus or found.error or not found.built_for)
