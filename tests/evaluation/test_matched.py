import dataclasses
import functools
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation import matched
from g2l_plugin.evaluation.bootstrap import bootstrap_interval
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.matched import MatchedRobustness

SCANNERS, STAINS, N_PLACES = ("P", "Q", "R"), ("GM", "HR"), 24
QUICK = functools.partial(bootstrap_interval, n_resamples=5)


def digitise(seed=0, noise=(0.6, 1.0), n_places=N_PLACES):
    """The same places under each scanner and stain, which add to their embeddings."""
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
    return MatchedRobustness(**settings).measure(embeddings, embeddings)


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
def test_the_figures_are_those_of_a_direct_loop(missing, monkeypatch):
    monkeypatch.setattr(matched, "_ROWS", 7)
    embeddings = digitise()
    rows = np.sort(np.random.default_rng(1).permutation(len(embeddings))[missing:])
    embeddings = keep(embeddings, rows)
    outcome = measure(embeddings, k=(1, 3))
    assert len(outcome.values) == 12
    for kind, pairs in all_pairs(embeddings, (1, 3)).items():
        for figure, of_pairs in zip(
            ("CosineSimilarity", "Top1Accuracy", "Top3Accuracy"), pairs.T, strict=True
        ):
            name = f"{figure}/{kind}"
            assert outcome.values[name] == pytest.approx(np.median(of_pairs), abs=1e-6)
            assert outcome.details["matched"][name] == pytest.approx(
                {
                    "mean": of_pairs.mean(),
                    "std": of_pairs.std(),
                    "median": np.median(of_pairs),
                    "iqr": np.subtract(*np.quantile(of_pairs, [0.75, 0.25])),
                    "pairs": len(of_pairs),
                },
                abs=1e-6,
            )
    details = outcome.details["matched"]
    assert (details["pairs"], details["pairs_without_match"]) == (15, 0)
    assert details["most_matched_tiles"] <= 24
    assert (details["fewest_matched_tiles"] < 24) == bool(missing)


def test_an_encoder_that_sees_neither_scanner_nor_stain_is_perfect():
    embeddings = digitise()
    locations = embeddings.groups["location"]
    places = np.unique(locations, return_inverse=True)[1]
    values = np.random.default_rng(0).normal(size=(N_PLACES, 6)).astype(np.float32)[places]
    outcome = measure(dataclasses.replace(embeddings, values=values))
    assert outcome.values == pytest.approx(dict.fromkeys(outcome.values, 1))


def test_a_collapsed_encoder_finds_nothing_again():
    embeddings = digitise()
    values = np.full_like(embeddings.values, 0.3)
    outcome = measure(dataclasses.replace(embeddings, values=values))
    assert outcome.values["CosineSimilarity/all"] == pytest.approx(1)
    assert outcome.values["Top10Accuracy/all"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999))
def test_scanner_and_stain_exchanged_exchange_their_figures(seed):
    embeddings = digitise(seed, n_places=12)
    groups = embeddings.groups
    exchanged = groups | {"scanner": groups["stain"], "stain": groups["scanner"]}
    with mock.patch.object(matched, "bootstrap_interval", QUICK):
        ours = measure(embeddings, k=[2])
        theirs = measure(dataclasses.replace(embeddings, groups=exchanged), k=[2])
    for figure in ("CosineSimilarity", "Top2Accuracy"):
        for kind, other in (("scanner", "stain"), ("stain", "scanner"), ("both", "both")):
            assert ours.values[f"{figure}/{kind}"] == pytest.approx(
                theirs.values[f"{figure}/{other}"], abs=1e-6
            )


def test_more_neighbours_find_more():
    values = measure(digitise()).values
    for kind in ("scanner", "stain", "both", "all"):
        found = [values[f"Top{k}Accuracy/{kind}"] for k in (1, 3, 5, 10)]
        assert found == sorted(found)
        assert 0 < found[0] < found[-1] <= 1


def test_intervals_are_over_patients_where_they_are_known():
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


def test_what_cannot_be_told_is_undefined_with_its_reason():
    embeddings = digitise()
    groups = {"scanner": embeddings.groups["scanner"]}
    outcome = measure(dataclasses.replace(embeddings, groups=groups), k=[1])
    assert outcome.values == {}
    assert outcome.undefined == dict.fromkeys(
        [
            f"{figure}/{kind}"
            for kind in ("scanner", "stain", "both", "all")
            for figure in ("CosineSimilarity", "Top1Accuracy")
        ],
        "no stain and no location of the tiles is known",
    )
    outcome = measure(keep(embeddings, embeddings.groups["stain"] == "GM"), k=[1])
    assert set(outcome.values) == {
        f"{figure}/{kind}"
        for kind in ("scanner", "all")
        for figure in ("CosineSimilarity", "Top1Accuracy")
    }
    assert outcome.undefined["Top1Accuracy/stain"] == (
        "no two slides of two stains under one scanner have a tile of the same place"
    )


def test_slides_without_a_common_place_are_left_out_and_counted():
    embeddings = digitise()
    groups = embeddings.groups
    elsewhere = groups["scanner"] == "R"
    locations = np.where(elsewhere, np.char.add("other ", groups["location"]), groups["location"])
    outcome = measure(
        dataclasses.replace(embeddings, groups=groups | {"location": locations}), k=[1]
    )
    assert outcome.details["matched"]["pairs"] == 15
    assert outcome.details["matched"]["pairs_without_match"] == 8
    expected = measure(keep(embeddings, ~elsewhere), k=[1])
    assert outcome.values["Top1Accuracy/both"] == expected.values["Top1Accuracy/both"]


def test_bad_input_is_an_error_that_names_it():
    embeddings = digitise()
    with pytest.raises(UserError, match="k is 48, and two slides have 24 and 24 tiles"):
        measure(embeddings, k=[48])
    with pytest.raises(UserError, match=r"Numbers of nearest tiles are \[0\]"):
        MatchedRobustness(k=[0])
    locations = embeddings.groups["location"].copy()
    locations[0] = locations[1]
    groups = embeddings.groups | {"location": locations}
    with pytest.raises(UserError, match="1 tiles of scanner P and stain GM are of a location"):
        measure(dataclasses.replace(embeddings, groups=groups))
    with pytest.raises(UserError, match="not finite"):
        measure(dataclasses.replace(embeddings, values=embeddings.values * np.nan))
