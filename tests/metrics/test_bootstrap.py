import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from g2l_plugin.metrics.bootstrap import Interval, bootstrap_interval


def test_resamples_hold_all_rows_of_the_drawn_units_as_a_direct_loop_does():
    units = np.array(["b", "a", "b", "c", "a", "b"])
    values = np.array([1.0, 5.0, 2.0, 9.0, 7.0, 3.0])
    drawn = []

    def mean(rows):
        drawn.append(sorted(rows))
        return values[rows].mean()

    interval = bootstrap_interval(mean, units, n_resamples=50, level=0.8, seed=3)

    generator = np.random.default_rng(3)
    members = [np.flatnonzero(units == unit) for unit in ("a", "b", "c")]
    means = []
    for call in range(50):
        rows = [row for unit in generator.integers(3, size=3) for row in members[unit]]
        assert drawn[call + 1] == sorted(rows)
        means.append(values[rows].mean())
    assert interval.value == values.mean()
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))


def test_the_interval_of_a_mean_of_independent_rows_equals_scipys():
    values = np.random.default_rng(0).exponential(size=80)
    interval = bootstrap_interval(lambda rows: values[rows].mean(), np.arange(80), 4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    width = interval.high - interval.low
    assert interval.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert interval.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_the_interval_covers_the_truth_at_about_its_level():
    generator = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 5)
    covered = 0
    for _ in range(200):
        values = np.repeat(generator.normal(size=40), 5) + 0.1 * generator.normal(size=200)
        interval = bootstrap_interval(lambda rows, v=values: v[rows].mean(), units, 200, level=0.9)
        covered += interval.low <= 0 <= interval.high
    assert 0.8 < covered / 200 < 0.96


def test_tiles_of_one_patient_do_not_count_as_independent():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    patients = np.repeat(np.arange(20), 50)
    by_patient = bootstrap_interval(lambda rows: values[rows].mean(), patients)
    by_tile = bootstrap_interval(lambda rows: values[rows].mean(), np.arange(1000))
    assert by_patient.high - by_patient.low > 5 * (by_tile.high - by_tile.low)


def test_a_model_compared_with_itself_has_a_difference_of_zero():
    correct = np.random.default_rng(0).random(60) < 0.7
    units = np.arange(60) // 6
    paired = bootstrap_interval(lambda rows: correct[rows].mean() - correct[rows].mean(), units)
    assert paired == Interval(0.0, 0.0, 0.0)


def test_one_unit_has_no_interval():
    interval = bootstrap_interval(lambda rows: float(len(rows)), np.array(["a", "a"]))
    assert interval.value == 2
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_resamples_with_a_nan_value_are_left_out():
    labels = np.array([0, 1])

    def both(rows):
        return 0.5 if len(set(labels[rows])) == 2 else math.nan

    assert bootstrap_interval(both, np.arange(2)) == Interval(0.5, 0.5, 0.5)
    nothing = bootstrap_interval(lambda rows: math.nan, np.arange(2))
    assert math.isnan(nothing.low) and math.isnan(nothing.high)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 99))
def test_names_and_order_of_units_do_not_matter(unit_of_row, seed):
    values = np.arange(len(unit_of_row)) ** 2.0
    numbers = bootstrap_interval(
        lambda rows: values[rows].sum(), np.array(unit_of_row), 20, 0.9, seed
    )
    names = np.array([f"patient {unit}" for unit in unit_of_row])
    names = bootstrap_interval(lambda rows: values[rows].sum(), names, 20, 0.9, seed)
    assert (numbers.value, numbers.low, numbers.high) == pytest.approx(
        (names.value, names.low, names.high), nan_ok=True
    )


def test_undefined_ends_are_none():
    assert Interval(0.5, 0.25, 0.75).ends() == {"low": 0.25, "high": 0.75}
    assert Interval(0.5, math.nan, math.nan).ends() == {"low": None, "high": None}
