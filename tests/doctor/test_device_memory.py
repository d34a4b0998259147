import dataclasses

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from g2l_plugin.doctor.device_memory import device_memory, is_measured, largest_fitting
from g2l_plugin.planning.settings import Model
from g2l_plugin.planning.step_memory import DEVICE_OVERHEAD

SMALL = Model("STUDENT", "scratch:vits14")


@pytest.fixture
def small(settings):
    teacher = Model("TEACHER", "scratch:vits14", dtype="bfloat16")
    return dataclasses.replace(settings, teachers=(teacher,), student=SMALL)


def test_the_recipe_needs_what_was_measured(settings):
    assert is_measured(settings)
    # docs/training.md: 16.2 GB on an H200.
    assert device_memory(settings) - DEVICE_OVERHEAD == pytest.approx(16.2e9, rel=0.03)


def test_another_precision_of_the_teacher_changes_its_weights(small):
    (teacher,) = small.teachers
    wide = dataclasses.replace(small, teachers=(dataclasses.replace(teacher, dtype="float32"),))
    assert not is_measured(wide)
    difference = device_memory(wide) - device_memory(small)
    assert difference == pytest.approx(21_629_952 * 2, rel=0.02)  # two bytes more each


def test_a_network_of_the_hub_that_is_not_known_counts_as_the_recipes(settings):
    other = dataclasses.replace(settings, student=Model("STUDENT", "hf-hub:org/unknown"))
    assert device_memory(other) == device_memory(settings)
    assert not is_measured(other)


def test_settings_that_no_step_is_planned_for_count_as_the_recipes(settings):
    other = dataclasses.replace(settings, precision="64-true")
    assert device_memory(other) == device_memory(settings)


@options(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(2, 1000), memory=st.floats(1e8, 5e10))
def test_more_tiles_need_more_memory_and_the_advice_fits(small, batch, memory):
    less = dataclasses.replace(small, batch_size=batch)
    more = dataclasses.replace(small, batch_size=batch + 1)
    assert device_memory(more) > device_memory(less)
    if (advised := largest_fitting(less, memory)) is not None:
        assert advised < batch
        assert device_memory(dataclasses.replace(less, micro_batch_size=advised)) <= memory
