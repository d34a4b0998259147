"""The overview, against ranks counted by hand and a frontier by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.report.overview import _frontier
from g2l_plugin.report.report import build_report

SIZES = {"small": (20, 900.0), "large": (300, 200.0), "waste": (400, 100.0)}


@pytest.fixture
def logs(write_session, tmp_path):
    """Three models on three tasks; ranks: large 1, 1, 1.5, small 2, 3, 1.5, waste 3, 2, 3."""
    accuracies = {
        "small": (0.8, 0.7, 0.9),
        "large": (0.9, 0.9, 0.9),
        "waste": (0.7, 0.8, 0.6),
    }
    for model, values in accuracies.items():
        for task, value in zip(("bach", "crc", "mhist"), values, strict=True):
            parameters, speed = SIZES[model]
            facts = {"parameters": parameters, "device": "H200", "tiles_per_second": speed}
            own = {"KNNAccuracy": value, "RobustnessIndex/k=5": 1 + value}
            write_session(f"{model}/{task}", model=model, task=task, values=own, facts=facts)
    return tmp_path / "logs"


def test_ranks_are_means_over_tasks_and_a_larger_slower_worse_model_is_off_the_frontier(logs):
    overview = build_report([str(logs)]).overview
    assert overview.n_tasks == overview.n_robustness_tasks == 3 and not overview.left_out
    lines = {line.model: line for line in overview.lines}
    assert list(lines) == ["large", "small", "waste"]
    means = [line.rank.value for line in lines.values()]
    assert means == pytest.approx([(1 + 1 + 1.5) / 3, (2 + 3 + 1.5) / 3, (3 + 2 + 3) / 3])
    assert lines["small"].robustness == pytest.approx(1 + (0.8 + 0.7 + 0.9) / 3)
    assert lines["small"].tiles_per_second == 900 and overview.device == "H200"
    assert [line.is_on_frontier for line in lines.values()] == [True, True, False]
    for name, ranks in {"large": (1, 1, 1.5), "small": (2, 3, 1.5)}.items():
        # All 27 resamples of three tasks, instead of 1,000 drawn ones.
        every = [np.mean(drawn) for drawn in itertools.product(ranks, repeat=3)]
        low, high = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
        interval = lines[name].rank
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.17)
        assert min(ranks) <= interval.low <= interval.value <= interval.high <= max(ranks)


def test_ranks_and_their_intervals_agree_with_loops_over_ties_and_many_tasks(
    write_session, tmp_path
):
    generator = np.random.default_rng(3)
    models, tasks = "abcde", range(9)
    values = {
        (model, task): round(0.7 + number / 50 + generator.normal() / 20, 2)
        for number, model in enumerate(models)
        for task in tasks
    }
    for (model, task), value in values.items():
        own = {"KNNAccuracy": value}
        write_session(f"{model}/{task}", model=model, task=f"task {task}", values=own)
    ranks = {model: [] for model in models}
    for task in tasks:
        for model in models:
            better = sum(values[other, task] > values[model, task] for other in models)
            equal = sum(values[other, task] == values[model, task] for other in models)
            ranks[model].append(better + (1 + equal) / 2)
    assert any(rank % 1 for own in ranks.values() for rank in own)  # there are ties
    found = {
        line.model: line.rank for line in build_report([str(tmp_path / "logs")]).overview.lines
    }
    for model, own in ranks.items():
        assert found[model].value == pytest.approx(sum(own) / len(own))
        means = sorted(np.mean(generator.choice(own, len(own))) for _ in range(4000))
        ends = (found[model].low, found[model].high)
        assert ends == pytest.approx((means[100], means[-101]), abs=0.12)


def test_a_model_without_the_tasks_of_the_others_is_not_ranked(logs, write_session):
    write_session("extra/bach", model="extra", task="bach", values={"KNNAccuracy": 0.99})
    write_session("extra/own", model="extra", task="own", values={"KNNAccuracy": 0.99})
    overview = build_report([str(logs)]).overview
    assert overview.left_out == ("extra",) and overview.n_tasks == 3
    assert overview.about.endswith("Not ranked, for lack of tasks: extra.")


def test_to_tell_scanners_apart_is_no_quality(logs, write_session):
    before = build_report([str(logs)]).overview
    for model, accuracy in (("small", 0.1), ("large", 0.2), ("waste", 0.9)):
        write_session(f"{model}/plism", model=model, task="plism", values={"KNNAccuracy": accuracy})
    after = build_report([str(logs)]).overview
    assert [line.rank for line in after.lines] == [line.rank for line in before.lines]


def test_one_task_has_ranks_without_a_word_of_an_interval(write_session, tmp_path):
    for model, value in (("a", 0.9), ("b", 0.8)):
        write_session(model, model=model, values={"KNNAccuracy": value})
    overview = build_report([str(tmp_path / "logs")]).overview
    assert [(line.model, line.rank.value) for line in overview.lines] == [("a", 1), ("b", 2)]
    assert np.isnan([line.rank.low for line in overview.lines]).all()
    assert overview.about == "Mean rank over 1 task by kNN accuracy: 1 is best."


def test_one_model_has_no_overview(write_session, tmp_path):
    write_session("a", values={"KNNAccuracy": 0.9})
    assert build_report([str(tmp_path / "logs")]).overview is None


def test_speeds_on_other_devices_are_no_cost(logs, write_session):
    facts = {"parameters": 5, "device": "CPU (2 threads)", "tiles_per_second": 5.0}
    for task in ("bach", "crc", "mhist"):
        own = {"KNNAccuracy": 0.1}
        write_session(f"tiny/{task}", model="tiny", task=task, values=own, facts=facts)
    overview = build_report([str(logs)]).overview
    assert overview.costs == ("parameters",) and overview.device == "H200"
    (tiny,) = (line for line in overview.lines if line.model == "tiny")
    assert tiny.tiles_per_second is None and tiny.is_on_frontier  # the smallest


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=8))
def test_the_frontier_is_what_no_other_beats(points):
    ranks, *costs = map(list, zip(*points, strict=True))
    found = _frontier(ranks, costs)
    array = np.array(points)
    for point, is_on in zip(array, found, strict=True):
        as_good = array[(array <= point).all(axis=1)]
        assert is_on == (as_good == point).all()
    assert any(found)
