import functools
import json
import re

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch.profiler import ProfilerActivity, profile

from g2l_plugin import DistillationModule
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.planning.step_memory import (
    DEVICE_OVERHEAD,
    Tracer,
    largest_batch,
    largest_micro_batch,
    step_alone,
    trace,
)
from g2l_plugin.planning.weightless import read_module
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.views import AugmentedView

GB = 1e9


@pytest.fixture(scope="module")
def recipe():
    return trace(read_module("g2l_breast"))


def small_module(dtype="float32"):
    return DistillationModule(
        EncoderSource("timm:test_vit", dtype=dtype, pretrained=False),
        EncoderSource("timm:test_vit2", pretrained=False),
        view=AugmentedView(160),
        optimizer=functools.partial(torch.optim.AdamW, fused=True),
    )


def test_the_recipe_needs_what_was_measured_on_a_gpu(recipe):
    rows = re.findall(
        r"^\| eager, (\d+)(?: in micro-batches of (\d+))? \|(.*)\|$",
        (ROOT / "docs" / "training.md").read_text(),
        re.MULTILINE,
    )
    measured = {
        (int(batch), int(micro) if micro else None): float(cells.split("|")[4])
        for batch, micro, cells in rows
    }
    # 64 is out of line: each tile between 32 and 128 would take as much memory as two beyond 64.
    measured.pop((64, None))
    assert len(measured) == 3
    for (batch, micro), gb in measured.items():
        assert recipe.peak(batch, micro) == pytest.approx(gb * GB, rel=0.03)


def test_the_page_has_the_planned_memory(recipe):
    text = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(
        r"^\| (\d+)(?: in micro-batches of (\d+))? \| ([\d.]+) \|", text, re.MULTILINE
    )
    assert len(rows) == 4
    for batch, micro, gb in rows:
        planned = recipe.peak(int(batch), int(micro) if micro else None)
        assert f"{planned / GB:.1f}" == gb


def test_between_steps_there_are_weights_and_moments(recipe):
    # H-optimus-0 in two bytes; Hibou-L and the projector in four, twice more for the moments.
    trained = 303_657_216 + 1024 * 1536 + 1536
    assert recipe.teachers == 1_134_774_272 * 2
    assert recipe.student == pytest.approx(4 * trained, rel=1e-3)
    assert recipe.gradients == pytest.approx(4 * trained, rel=1e-3)
    assert recipe.optimizer == pytest.approx(8 * trained, rel=1e-3)
    assert recipe.peak(2) > recipe.fixed + recipe.gradients


@pytest.mark.parametrize(
    ("precision", "micro"), [("32-true", None), ("bf16-mixed", None), ("32-true", 2)]
)
def test_a_real_step_has_the_peak_of_the_traced_one(tmp_path, precision, micro):
    batch = 8
    dtype = "bfloat16" if precision == "bf16-mixed" else "float32"
    planned = Tracer(small_module(dtype=dtype), precision).peak(batch, micro)
    assert real_peak(tmp_path, dtype, precision, micro, batch) == pytest.approx(planned, rel=0.1)


def real_peak(folder, dtype, precision, micro, batch):
    """The peak of real tensors from the first weight on, as PyTorch's allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module = small_module(dtype=dtype)
        module.micro_batch_size = micro
        module.configure_model()
        module.train()
        step_alone(module)
        optimizer = module.optimizer([p for p in module.parameters() if p.requires_grad])
        tiles = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
        for _ in range(2):  # the moments are there in the second
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                step = module.training_step(TileBatch(tiles, np.arange(batch), None, 0))
            step.pop("loss").backward()
            optimizer.step()
            optimizer.zero_grad()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    return np.cumsum([size for _, size in changes]).max()


def test_micro_batches_and_larger_batches_follow_from_the_traced_ones():
    step = trace(small_module())
    tracer = Tracer(small_module(), "bf16-mixed")
    assert step.peak(128) == pytest.approx(tracer.peak(128), rel=0.01)
    assert step.peak(64, 32) == pytest.approx(tracer.peak(64, 32), rel=0.05)
    assert step.peak(32, 32) == step.peak(32) == tracer.peak(32)


def test_the_largest_batch_fits_and_twice_as_large_does_not(recipe):
    for memory in (24e9, 80e9, 141e9):
        batch = largest_batch(recipe, memory)
        assert recipe.peak(batch) + DEVICE_OVERHEAD <= memory
        assert recipe.peak(2 * batch) + DEVICE_OVERHEAD > memory
        micro = largest_micro_batch(recipe, 1024, memory)
        assert recipe.peak(1024, micro) + DEVICE_OVERHEAD <= memory
        assert recipe.peak(1024, 2 * micro) + DEVICE_OVERHEAD > memory
    assert largest_batch(recipe, 6e9) is largest_micro_batch(recipe, 1024, 6e9) is None


def test_a_precision_that_is_not_traced_is_named():
    with pytest.raises(UserError, match="PRECISION is '64-true'.*bf16-mixed"):
        trace(small_module(), "64-true")
