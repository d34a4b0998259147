import dataclasses
import functools
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.metrics import plism
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.plism import MatchedRobustness

SCANNERS, STAINS, N_PLACES = ("P", "Q", "R"), ("GM", "HR"), 24
QUICK = functools.partial(bootstrap_interval, n_resamples=5)


def digitise(seed=0, noise=(0.6, 1.0), n_places=N_PLACES):
    """The same locations with each scanner and stain, each of which shifts the embeddings."""
    generator = np.random.default_rng(seed)
    places = generator.normal(size=(n_places, 6))
    values, groups = [], {"scanner": [], "stain": [], "location": [], "patient": []}
    for scanner, stain in itertools.product(SCANNERS, STAINS):
        shift = noise[0] * SCANNERS.index(scanner) * np.eye(6)[0]
        shift = shift + noise[1] * STAINS.index(stain) * np.eye(6)[1]
        for place in generator.permutation(n_places):
            values.append(places[place] + shift + 0.3 * generator.normal(size=6))
            groups["scanner"].append(scanner)
            groups["stain"].append(stain)
            groups["location"].append(f"place {place}")
            groups["patient"].append(f"patient {place % 5}")
    names = np.array([f"{i}" for i in range(len(values))])
    groups = {name: np.array(group) for name, group in groups.items()}
    return Embeddings(np.array(values, np.float32), np.zeros(len(names), int), names, groups)


def keep(embeddings, rows):
    groups = {name: group[rows] for name, group in embeddings.groups.items()}
    return Embeddings(
        embeddings.values[rows], embeddings.labels[rows], embeddings.names[rows], groups
    )


def measure(embeddings, **settings):
    return MatchedRobustness(**settings).compute(embeddings, embeddings)


def one_pair(embeddings, a, b, ks):
    """Cosine similarity and top-k accuracies of two slides, tile by tile."""
    groups = embeddings.groups
    rows = {
        slide: {
            groups["location"][row]: row
            for row in range(len(embeddings))
            if (groups["scanner"][row], groups["stain"][row]) == slide
        }
        for slide in (a, b)
    }
    unit = embeddings.values / np.linalg.norm(embeddings.values, axis=1, keepdims=True)
    pool = [*rows[a].values(), *rows[b].values()]
    places = sorted(rows[a].keys() & rows[b].keys())
    cosine = np.mean([unit[rows[a][place]] @ unit[rows[b][place]] for place in places])
    hits = {k: [] for k in ks}
    for (source, target), place in itertools.product(((a, b), (b, a)), places):
        query = rows[source][place]
        others = sorted((-(unit[query] @ unit[row]), row) for row in pool if row != query)
        for k in ks:
            hits[k].append(rows[target][place] in [row for _, row in others[:k]])
    return [cosine, *(np.mean(hits[k]) for k in ks)]


def all_pairs(embeddings, ks):
    found = {"scanner": [], "stain": [], "both": [], "all": []}
    for a, b in itertools.combinations(itertools.product(SCANNERS, STAINS), 2):
        kind = "scanner" if a[1] == b[1] else "stain" if a[0] == b[0] else "both"
        found[kind].append(one_pair(embeddings, a, b, ks))
    found["all"] = found["scanner"] + found["stain"] + found["both"]
    return {kind: np.array(pairs) for kind, pairs in found.items()}


@pytest.mark.parametrize("missing", [0, 30])
def test_the_values_equal_those_of_a_direct_loop(missing, monkeypatch):
    monkeypatch.setattr(plism, "_ROWS", 7)
    embeddings = digitise()
    rows = np.sort(np.random.default_rng(1).permutation(len(embeddings))[missing:])
    embeddings = keep(embeddings, rows)
    result = measure(embeddings, k=(1, 3))
    assert len(result.values) == 12
    for kind, pairs in all_pairs(embeddings, (1, 3)).items():
        for metric, of_pairs in zip(
            ("CosineSimilarity", "Top1Accuracy", "Top3Accuracy"), pairs.T, strict=True
        ):
            name = f"{metric}/{kind}"
            assert result.values[name] == pytest.approx(np.median(of_pairs), abs=1e-6)
            assert result.details["matched"][name] == pytest.approx(
                {
                    "mean": of_pairs.mean(),
                    "std": of_pairs.std(),
                    "median": np.median(of_pairs),
                    "iqr": np.subtract(*np.quantile(of_pairs, [0.75, 0.25])),
                    "pairs": len(of_pairs),
                },
                abs=1e-6,
            )
    details = result.details["matched"]
    assert (details["pairs"], details["pairs_without_match"]) == (15, 0)
    assert details["most_matched_tiles"] <= 24
    assert (details["fewest_matched_tiles"] < 24) == bool(missing)


def test_an_encoder_that_sees_neither_scanner_nor_stain_is_perfect():
    embeddings = digitise()
    locations = embeddings.groups["location"]
    places = np.unique(locations, return_inverse=True)[1]
    values = np.random.default_rng(0).normal(size=(N_PLACES, 6)).astype(np.float32)[places]
    result = measure(dataclasses.replace(embeddings, values=values))
    assert result.values == pytest.approx(dict.fromkeys(result.values, 1))


def test_a_collapsed_encoder_retrieves_nothing():
    embeddings = digitise()
    values = np.full_like(embeddings.values, 0.3)
    result = measure(dataclasses.replace(embeddings, values=values))
    assert result.values["CosineSimilarity/all"] == pytest.approx(1)
    assert result.values["Top10Accuracy/all"] == 0


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_swapping_scanner_and_stain_swaps_their_values(seed):
    embeddings = digitise(seed, n_places=12)
    groups = embeddings.groups
    exchanged = groups | {"scanner": groups["stain"], "stain": groups["scanner"]}
    with mock.patch.object(plism, "bootstrap_interval", QUICK):
        ours = measure(embeddings, k=[2])
        theirs = measure(dataclasses.replace(embeddings, groups=exchanged), k=[2])
    for metric in ("CosineSimilarity", "Top2Accuracy"):
        for kind, other in (("scanner", "stain"), ("stain", "scanner"), ("both", "both")):
            assert ours.values[f"{metric}/{kind}"] == pytest.approx(
                theirs.values[f"{metric}/{other}"], abs=1e-6
            )


def test_accuracy_grows_with_k():
    values = measure(digitise()).values
    for kind in ("scanner", "stain", "both", "all"):
        found = [values[f"Top{k}Accuracy/{kind}"] for k in (1, 3, 5, 10)]
        assert found == sorted(found)
        assert 0 < found[0] < found[-1] <= 1


def test_intervals_are_over_patients_if_known():
    embeddings = digitise()
    known = measure(embeddings)
    for name, value in known.values.items():
        ends = known.details["intervals"][name]
        assert ends["low"] <= value <= ends["high"]
    assert known.details["intervals"]["Top1Accuracy/all"]["low"] < 1
    groups = {name: group for name, group in embeddings.groups.items() if name != "patient"}
    unknown = measure(dataclasses.replace(embeddings, groups=groups))
    assert unknown.values == pytest.approx(known.values)
    assert unknown.details["intervals"]["Top1Accuracy/all"] == {"low": None, "high": None}


def test_undefined_values_have_their_reason():
    embeddings = digitise()
    groups = {"scanner": embeddings.groups["scanner"]}
    result = measure(dataclasses.replace(embeddings, groups=groups), k=[1])
    assert result.values == {}
    assert result.undefined == dict.fromkeys(
        [
            f"{metric}/{kind}"
            for kind in ("scanner", "stain", "both", "all")
            for metric in ("CosineSimilarity", "Top1Accuracy")
        ],
        "the stain and the location of the tiles is unknown",
    )
    result = measure(keep(embeddings, embeddings.groups["stain"] == "GM"), k=[1])
    assert set(result.values) == {
        f"{metric}/{kind}"
        for kind in ("scanner", "all")
        for metric in ("CosineSimilarity", "Top1Accuracy")
    }
    assert result.undefined["Top1Accuracy/stain"] == (
        "no two slides with two stains and one scanner have a tile of the same location"
    )


def test_slides_without_a_common_location_are_left_out_and_counted():
    embeddings = digitise()
    groups = embeddings.groups
    elsewhere = groups["scanner"] == "R"
    locations = np.where(elsewhere, np.char.add("other ", groups["location"]), groups["location"])
    result = measure(
        dataclasses.replace(embeddings, groups=groups | {"location": locations}), k=[1]
    )
    assert result.details["matched"]["pairs"] == 15
    assert result.details["matched"]["pairs_without_match"] == 8
    expected = measure(keep(embeddings, ~elsewhere), k=[1])
    assert result.values["Top1Accuracy/both"] == expected.values["Top1Accuracy/both"]


def test_bad_input_is_an_error():
    embeddings = digitise()
    with pytest.raises(UserError, match="k is 48, but two slides have 24 and 24 tiles"):
        measure(embeddings, k=[48])
    with pytest.raises(UserError, match=r"The numbers of nearest tiles are \[0\]"):
        MatchedRobustness(k=[0])
    locations = embeddings.groups["location"].copy()
    locations[0] = locations[1]
    groups = embeddings.groups | {"location": locations}
    with pytest.raises(
        UserError, match="1 tiles of scanner P and stain GM have the location of another"
    ):
        measure(dataclasses.replace(embeddings, groups=groups))
    with pytest.raises(UserError, match="not finite"):
        measure(dataclasses.replace(embeddings, values=embeddings.values * np.nan))
