import dataclasses
import re

import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from g2l_plugin.doctor import needs
from g2l_plugin.doctor.settings import Model

DOCS = (ROOT / "docs" / "training.md").read_text()


def test_the_measured_memory_is_that_of_the_document():
    rows = re.findall(r"^\| eager, (\d+) \|(.*)\|$", DOCS, re.MULTILINE)
    measured = {int(batch): float(cells.split("|")[4]) * 1e9 for batch, cells in rows}
    assert measured == needs.MEASURED


def test_the_default_networks_need_what_was_measured(settings):
    assert needs.is_measured(settings)
    for batch, peak in needs.MEASURED.items():
        assert needs.device_memory(settings, batch) == pytest.approx(peak)


def test_without_activations_it_is_weights_gradients_and_moments(settings):
    # H-optimus-0 in two bytes; Hibou-L in float32, with its gradient and two moments.
    assert needs.device_memory(settings, 0) == pytest.approx(1_134_774_272 * 2 + 303_657_216 * 16)


def test_another_teacher_changes_its_weights_alone(settings):
    teacher = dataclasses.replace(settings.teachers[0], dtype="float32")
    other = dataclasses.replace(settings, teachers=(teacher,))
    assert not needs.is_measured(other)
    difference = needs.device_memory(other, 64) - needs.device_memory(settings, 64)
    assert difference == pytest.approx(1_134_774_272 * 2)


def test_a_smaller_student_needs_less_but_never_less_than_depth_times_width(settings):
    small = dataclasses.replace(settings, student=Model("STUDENT", "scratch:vits14"))
    fixed, whole = needs.device_memory(small, 0), needs.device_memory(small, 32)
    activations = needs.MEASURED[32] - needs.device_memory(settings, 0)
    assert activations * (12 * 384) / (24 * 1024) < whole - fixed < activations / 2


@options(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 1000), memory=st.floats(1e9, 2e11))
def test_more_tiles_need_more_memory_and_the_advice_fits(settings, batch, memory):
    settings = dataclasses.replace(settings, batch_size=batch)
    assert needs.device_memory(settings, batch + 1) > needs.device_memory(settings, batch)
    if (advised := needs.largest_batch(settings, memory)) is not None:
        assert advised < batch
        assert needs.device_memory(settings, advised) + needs.DEVICE_OVERHEAD <= memory


def test_the_disk_that_is_needed_is_that_of_the_cost_page(settings):
    text = (ROOT / "docs" / "cost.md").read_text()
    row = {name: float(gb) for name, gb in re.findall(r"^\| (.+) \| ([\d.]+) \|$", text, re.M)}
    checkpoints = row["three checkpoints (two kept, one being written)"] + row["last.ckpt"]
    written = checkpoints + row["the published student"]
    assert needs.output_size(settings) / 1e9 == pytest.approx(written, abs=0.15)
    (embeddings,) = (gb for name, gb in row.items() if "embeddings" in name)
    assert needs.cache_size(settings) / 1e9 == pytest.approx(embeddings, abs=0.05)


def test_weights_that_are_in_the_cache_are_not_downloaded(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    both = needs.download_size(settings)
    assert both == (1_134_774_272 + 303_657_216) * 4
    repo = tmp_path / "models--bioptimus--H-optimus-0"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "model.safetensors").touch()
    assert needs.download_size(settings) == 303_657_216 * 4


def test_only_workers_that_are_not_forked_need_shared_memory(settings):
    assert needs.shared_memory(settings, 8, 1, forked=True) == 0
    assert needs.shared_memory(settings, 0, 1, forked=False) == 0
    spawned = needs.shared_memory(settings, 8, 1, forked=False)
    assert spawned == (8192 + 8 * 2 * 32) * 256 * 256 * 3
