import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loguru import logger
from sklearn.neighbors import NearestNeighbors

from g2l_plugin.errors import UserError
from g2l_plugin.metrics import robustness
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.robustness import RobustnessIndex

QUICK = functools.partial(bootstrap_interval, n_resamples=5)


def embed(values, labels, centres, **groups):
    names = np.array([f"tile {i}" for i in range(len(labels))])
    groups = {name: np.array(group) for name, group in groups.items()}
    return Embeddings(
        np.asarray(values, np.float32),
        np.asarray(labels),
        names,
        {"centre": np.asarray(centres).astype(str)} | groups,
    )


def draw(seed, n=80, n_classes=3, n_centres=3, n_slides=12, weights=(1.0, 1.0)):
    """Embeddings that encode both class and centre; each slide has one centre."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=n)
    slides = generator.integers(n_slides, size=n)
    centres = slides % n_centres
    values = generator.normal(size=(n, 10))
    values[:, :n_classes] += weights[0] * np.eye(n_classes)[labels]
    values[:, n_classes : n_classes + n_centres] += weights[1] * np.eye(n_centres)[centres]
    return embed(values, labels, centres, slide=[f"slide {slide}" for slide in slides])


def measure(embeddings, **settings):
    return RobustnessIndex(**settings).compute(embeddings, embeddings)


def clusters(by):
    """Each of two classes with each of two centres 40 times, clustered by class or centre."""
    labels, centres = np.tile([0, 0, 1, 1], 40), np.tile([0, 1, 0, 1], 40)
    noise = np.random.default_rng(0).normal(size=(160, 2)) * 0.01
    values = np.eye(2)[labels if by == "class" else centres] + noise
    return embed(values, labels, centres, slide=[f"{i}" for i in range(160)])


def test_clusters_of_classes_are_robust_and_clusters_of_centres_are_not():
    by_class = measure(clusters("class"))
    by_centre = measure(clusters("centre"))
    for k in (3, 5, 10, 20):
        assert by_class.values[f"PathoROBIndex/k={k}"] == 1
        assert by_centre.values[f"PathoROBIndex/k={k}"] == 0
        counts = by_class.details["robustness"]["neighbours"][str(k)]
        assert counts["OS"] == counts["OO"] == 0
        assert counts["SS"] + counts["SO"] == 160 * k
        expected = 160 * k / counts["SS"]
        assert by_class.values[f"RobustnessIndex/k={k}"] == expected > 1.5
        assert by_centre.values[f"RobustnessIndex/k={k}"] < 0.67


@pytest.mark.parametrize("exclude", ["slide", None])
def test_the_counts_equal_those_of_a_direct_loop(exclude):
    embeddings = draw(0)
    result = measure(embeddings, k=(3, 7), exclude=(exclude,) if exclude else ())
    search = NearestNeighbors(n_neighbors=80, metric="cosine").fit(embeddings.values)
    slides = embeddings.groups["slide"]
    centres = embeddings.groups["centre"]
    for k in (3, 7):
        counts = dict.fromkeys(("SS", "SO", "OS", "OO"), 0)
        for tile, row in enumerate(search.kneighbors(embeddings.values)[1]):
            others = [
                other
                for other in row
                if (slides[other] != slides[tile] if exclude else other != tile)
            ]
            for other in others[:k]:
                kind = "S" if embeddings.labels[other] == embeddings.labels[tile] else "O"
                counts[kind + ("S" if centres[other] == centres[tile] else "O")] += 1
        ss, so, os = counts["SS"], counts["SO"], counts["OS"]
        assert result.details["robustness"]["neighbours"][str(k)] == counts
        assert result.values[f"RobustnessIndex/k={k}"] == pytest.approx((ss + so) / (ss + os))
        assert result.values[f"PathoROBIndex/k={k}"] == pytest.approx(so / (so + os))


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(1, 15))
def test_swapping_class_and_centre_inverts_the_index(seed, k):
    embeddings = draw(seed)
    exchanged = dataclasses.replace(
        embeddings,
        labels=embeddings.groups["centre"].astype(int),
        groups=embeddings.groups | {"centre": embeddings.labels.astype(str)},
    )
    with mock.patch.object(robustness, "bootstrap_interval", QUICK):
        ours, theirs = measure(embeddings, k=[k]), measure(exchanged, k=[k])
    index = ours.values[f"RobustnessIndex/k={k}"]
    assume(index > 0)
    assert theirs.values[f"RobustnessIndex/k={k}"] == pytest.approx(1 / index)
    assert theirs.values[f"PathoROBIndex/k={k}"] == pytest.approx(
        1 - ours.values[f"PathoROBIndex/k={k}"]
    )


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_the_curve_contains_the_values(seed):
    with mock.patch.object(robustness, "bootstrap_interval", QUICK):
        result = measure(draw(seed), k=(2, 9))
    for name in ("RobustnessIndex", "PathoROBIndex"):
        curve = result.details["curves"][name]
        assert curve["k"] == list(range(1, 10))
        for k in (2, 9):
            assert curve["value"][k - 1] == result.values[f"{name}/k={k}"]


def test_a_stronger_class_signal_is_more_robust():
    weak, strong = (measure(draw(0, n=300, weights=(w, 1.0))) for w in (0.5, 3.0))
    assert all(strong.values[name] > weak.values[name] for name in weak.values)


def test_the_interval_is_over_patients():
    embeddings = draw(0, n=200)
    few = np.arange(200) % 4
    groups = embeddings.groups | {"patient": np.char.add("patient ", few.astype(str))}
    by_tile = measure(dataclasses.replace(embeddings, groups={"centre": groups["centre"]}))
    by_patient = measure(dataclasses.replace(embeddings, groups=groups), exclude=())
    for name, value in by_tile.values.items():
        ends = by_tile.details["intervals"][name]
        assert ends["low"] < value < ends["high"]
        assert by_patient.values[name] == value
        assert by_patient.details["intervals"][name] != ends


@pytest.mark.parametrize(
    ("groups", "excluded"),
    [(("slide", "patient"), "slide"), (("patient",), "patient"), ((), "tile")],
)
def test_tiles_of_the_first_known_group_are_excluded(groups, excluded):
    embeddings = draw(0)
    slides = embeddings.groups["slide"]
    known = {"centre": embeddings.groups["centre"]} | dict.fromkeys(groups, slides)
    said = []
    handler = logger.add(said.append, format="{message}", level="WARNING")
    result = measure(dataclasses.replace(embeddings, groups=known), k=[3])
    logger.remove(handler)
    assert result.details["robustness"]["exclude"] == excluded
    assert bool(said) == (excluded == "tile")


def test_undefined_values_have_their_reason_and_are_never_0():
    whole = draw(0)
    names = {f"{index}/k=3" for index in ("RobustnessIndex", "PathoROBIndex")}
    for broken, reason in (
        (dataclasses.replace(whole, groups={}), "the centre of the tiles is unknown"),
        (
            dataclasses.replace(whole, groups={"centre": np.full(80, "A")}),
            "all tiles have the same centre, A",
        ),
        (dataclasses.replace(whole, labels=np.zeros(80, int)), "all tiles have the same class, 0"),
    ):
        result = measure(broken, k=[3])
        assert result.values == {}
        assert result.undefined == dict.fromkeys(names, reason)


def test_uninformative_neighbours_leave_the_index_undefined():
    # Nearest to each tile are two of the other class and centre (OO), then its own kind (SS).
    values = [[1, 0], [1, 0.01], [0, 1], [0.01, 1]]
    embeddings = embed(values, [0, 1, 0, 1], ["A", "B", "A", "B"])
    result = measure(embeddings, k=[1, 3], exclude=())
    assert result.values == {"RobustnessIndex/k=3": 1}
    assert result.undefined == {
        "RobustnessIndex/k=1": "no neighbour has the same centre",
        "PathoROBIndex/k=1": "no neighbour shares only the class or only the centre",
        "PathoROBIndex/k=3": "no neighbour shares only the class or only the centre",
    }
    assert result.details["curves"]["PathoROBIndex"]["value"] == [None, None, None]


def test_more_neighbours_than_tiles_leave_that_k_undefined():
    embeddings = draw(0)
    most = 80 - max(np.unique(embeddings.groups["slide"], return_counts=True)[1])
    result = measure(embeddings, k=[3, most, most + 1])
    assert set(result.undefined) == {
        f"{index}/k={most + 1}" for index in ("RobustnessIndex", "PathoROBIndex")
    }
    assert f"only {most} others of another slide" in result.undefined[f"PathoROBIndex/k={most + 1}"]
    assert result.values == measure(embeddings, k=[3, most]).values


def test_tiles_of_one_patient_have_no_robustness():
    embeddings = draw(0)
    embeddings.groups["slide"][:] = "the only one"
    result = measure(embeddings, k=[3, 5])
    assert not result.values and len(result.undefined) == 4


@pytest.mark.parametrize("k", [[], [0, 3]])
def test_impossible_numbers_of_neighbours_are_an_error(k):
    with pytest.raises(UserError, match="needs numbers of neighbours"):
        RobustnessIndex(k=k)
