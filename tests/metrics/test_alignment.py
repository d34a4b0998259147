import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.metrics.alignment import Estimate, effective_rank, shared_neighbours, unbiased_cka
from g2l_plugin.metrics.cka import LinearCKA


def draw(n, seed=0, widths=(8, 12), noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 4, generator=generator)
    return [
        common @ torch.randn(4, width, generator=generator)
        + noise * torch.randn(n, width, generator=generator)
        + 3
        for width in widths
    ]


@settings(max_examples=25)
@given(st.integers(6, 60), st.integers(2, 5), st.integers(0, 10**6))
def test_cka_equals_the_streamed_metric_with_and_without_each_patient(n, n_patients, seed):
    x, y = draw(n, seed)
    patients = np.arange(n) % n_patients
    estimate = unbiased_cka(x, y, patients)

    def streamed(rows):
        metric = LinearCKA(8, 12, unbiased=True)
        metric.update(x[rows], y[rows])
        return metric.compute().item()

    assert estimate.value == pytest.approx(streamed(np.arange(n)), abs=1e-6, nan_ok=True)
    without = [streamed(np.flatnonzero(patients != patient)) for patient in range(n_patients)]
    assert estimate.without == pytest.approx(without, abs=1e-6, nan_ok=True)


def test_unrelated_embeddings_of_few_tiles_are_not_aligned():
    torch.manual_seed(0)
    values = [unbiased_cka(torch.randn(256, 1024), torch.randn(256, 1280)).value for _ in range(5)]
    assert max(map(abs, values)) < 0.05


def test_the_interval_covers_the_value_of_all_tiles_as_often_as_it_says():
    # The value of 200,000 tiles by the same encoders is what a sample of patients estimates.
    torch.manual_seed(1)
    maps = [torch.randn(6, 10), torch.randn(6, 14)]

    def sample(n_patients, per_patient=10):
        patient = torch.randn(n_patients, 1, 6) + 0.7 * torch.randn(n_patients, per_patient, 6)
        signal = patient.flatten(0, 1)
        pair = [signal @ m + 2 * torch.randn(len(signal), m.shape[1]) for m in maps]
        return *pair, np.repeat(np.arange(n_patients), per_patient)

    metric = LinearCKA(10, 14, unbiased=True)
    for _ in range(20):
        metric.update(*sample(1000)[:2])
    truth = metric.compute().item()
    covered = 0
    for _ in range(200):
        low, high = unbiased_cka(*sample(25)).interval()
        covered += low <= truth <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_of_a_difference_is_paired():
    x, y = draw(200)
    patients = np.arange(200) // 10
    slightly_worse = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    before, after = unbiased_cka(x, y, patients), unbiased_cka(x, slightly_worse, patients)
    low, high = (after - before).interval()
    assert high - low < 0.2 * (before.interval()[1] - before.interval()[0])
    assert (after - before).value == pytest.approx(after.value - before.value)


def test_without_patients_there_is_no_interval():
    for estimate in (unbiased_cka(*draw(20)), shared_neighbours(*draw(20))):
        assert estimate.without == () and all(map(math.isnan, estimate.interval()))
    for n_patients, known in ((1, False), (4, False), (5, True)):
        interval = unbiased_cka(*draw(40), np.arange(40) % n_patients).interval()
        assert all(math.isfinite(end) == known for end in interval)


def test_constant_embeddings_and_few_tiles_are_undefined():
    x, _ = draw(20)
    assert math.isnan(unbiased_cka(x, torch.ones(20, 5)).value)
    assert math.isnan(unbiased_cka(*draw(3)).value)
    assert math.isnan(shared_neighbours(x[:1], x[:1]).value)
    assert math.isnan(effective_rank(torch.ones(20, 5)))


def test_shared_neighbours_are_one_for_the_same_order_and_chance_for_unrelated_embeddings():
    x, _ = draw(300)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert shared_neighbours(x, 7 * x @ rotation).value == 1
    torch.manual_seed(0)
    chance = shared_neighbours(torch.randn(1000, 16), torch.randn(1000, 16)).value
    assert chance == pytest.approx(10 / 999, abs=0.005)
    few = shared_neighbours(x[:4], x[:4])  # k is at most the number of other tiles
    assert few.value == 1


def test_shared_neighbours_without_a_patient_are_the_mean_over_the_other_tiles():
    x, y = draw(60)
    patients = np.repeat([0, 1, 2], 20)
    estimate = shared_neighbours(x, y, patients)
    per_tile = [3 * estimate.value - 2 * value for value in estimate.without]
    assert np.mean(per_tile) == pytest.approx(estimate.value)


@pytest.mark.parametrize("shape", [(30, 200), (200, 30)])
def test_effective_rank_counts_directions(shape):
    generator = torch.Generator().manual_seed(0)
    n, width = shape
    basis = torch.linalg.qr(torch.randn(width, 5, generator=generator))[0]
    coordinates = torch.linalg.qr(torch.randn(n, 6, generator=generator))[0]
    coordinates = torch.linalg.qr(coordinates - coordinates.mean(0))[0][:, :5]
    assert effective_rank(coordinates @ basis.T + 3) == pytest.approx(5, rel=1e-4)


def test_an_estimate_survives_a_checkpoint():
    estimate = unbiased_cka(*draw(20), np.arange(20) % 4)
    assert Estimate.from_dict(estimate.to_dict()) == estimate
