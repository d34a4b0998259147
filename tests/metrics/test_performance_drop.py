import dataclasses
import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from g2l_plugin.errors import UserError
from g2l_plugin.metrics import performance_drop
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.performance_drop import AveragePerformanceDrop
from g2l_plugin.metrics.performance_drop_designs import DESIGNS, Design, sets_of_test_slides

SMALL = Design(
    tiles="tiles",
    centres=("A", "B"),
    classes=(1, 0),
    slides=np.array([[[2 - n, 2 + n], [2 + n, 2 - n]] for n in range(3)]),
    most_slides=4,
    tiles_per_slide=4,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(DESIGNS, "small", SMALL)


def draw(strength=(0.8, 1.5), n_slides=7, seed=0):
    """Two classes from centres A and B, 7 slides of 4 tiles each; 20 tiles from centre C."""
    rng = np.random.default_rng(seed)
    rows = [
        (label, centre, f"{centre}{label} slide {slide}", "ID")
        for label in (0, 1)
        for centre in "AB"
        for slide in range(n_slides)
        for _ in range(4)
    ] + [(tile % 2, "C", f"C{tile}", "OOD") for tile in range(20)]
    labels = np.array([row[0] for row in rows])
    centres = np.array([row[1] for row in rows])
    values = rng.normal(size=(len(rows), 8))
    values[:, 0] += strength[0] * (2 * labels - 1)
    values[:, 1] += strength[1] * ((centres == "A") * 1.0 - (centres == "B"))
    order = rng.permutation(len(rows))  # the order of the files is not that of the list
    groups = {
        "centre": centres,
        "slide": np.array([row[2] for row in rows]),
        "listed": np.array([f"tiles/{row[3]}/{number}" for number, row in enumerate(rows)]),
    }
    return Embeddings(
        values[order].astype(np.float32),
        labels[order],
        np.array([f"tile {number}" for number in order]),
        {name: group[order] for name, group in groups.items()},
    )


def balanced(model, values, labels):
    found = model.predict(values)
    return np.mean([np.mean(found[labels == own] == own) for own in set(labels.tolist())])


def drop_by_hand(tiles, n_repeats):
    """The two drops in a plain loop over tiles, with Python's global random numbers."""
    row_of = [int(entry.split("/")[-1]) for entry in tiles.groups["listed"]]
    tile_at = {row: tile for tile, row in enumerate(row_of)}
    in_order = [tile_at[row] for row in sorted(tile_at)]
    cells = {}
    for centre in "AB":
        for label in (1, 0):
            slides = {}
            for tile in in_order:
                if tiles.groups["centre"][tile] == centre and tiles.labels[tile] == label:
                    slides.setdefault(tiles.groups["slide"][tile], []).append(tile)
            cells[centre, label] = list(slides.values())
    others = [tile for tile in in_order if tiles.groups["centre"][tile] == "C"]
    random.seed(1000)
    ratios = []
    for seed in random.sample(range(10000), n_repeats):
        random.seed(seed)
        for slides in cells.values():
            random.shuffle(slides)
        accuracies = []
        for step in range(3):
            parts = {"train": [], "val": [], "test": [], "other": others}
            for (centre, label), slides in cells.items():
                n = 2 + step if (centre, label) in (("A", 0), ("B", 1)) else 2 - step
                flat = [tile for slide in slides for tile in slide]
                parts["train"] += flat[: 4 * n]
                parts["val"] += flat[4 * n : 4 * n + n]  # a share of a slide: 4 n / 4 tiles
                parts["test"] += flat[4 * 5 :]
            x = {name: tiles.values[own].astype(float) for name, own in parts.items()}
            y = {name: tiles.labels[own] for name, own in parts.items()}
            best, best_score = None, -1.0
            for exponent in np.linspace(-8, 4, 15):
                model = LogisticRegression(C=10**exponent).fit(x["train"], y["train"])
                score = balanced(model, x["val"], y["val"])
                if score > best_score:
                    best, best_score = model, score
            accuracies.append([balanced(best, x[name], y[name]) for name in ("test", "other")])
        ratios.append(
            [(accuracies[1][d] + accuracies[2][d]) / 2 / accuracies[0][d] for d in (0, 1)]
        )
    return np.mean(ratios, axis=0) - 1


def test_the_drop_equals_that_of_a_direct_loop():
    tiles = draw()
    result = AveragePerformanceDrop("small", n_repeats=2).compute(tiles, tiles)
    expected = drop_by_hand(tiles, 2)
    assert list(result.values) == [
        "AveragePerformanceDrop/ID/repeats=2",
        "AveragePerformanceDrop/OOD/repeats=2",
    ]
    assert list(result.values.values()) == pytest.approx(expected, abs=1e-9)
    details = result.details["performance_drop"]["ID"]
    assert len(details["accuracies"]) == 3 and len(details["drops"]) == 2


def test_an_encoder_that_shows_only_the_centre_loses_and_one_that_shows_only_the_class_does_not():
    blind, robust = (
        AveragePerformanceDrop("small", n_repeats=4).compute(tiles, tiles)
        for tiles in (draw((0.7, 6.0)), draw((6.0, 0.0)))
    )
    assert blind.values["AveragePerformanceDrop/ID/repeats=4"] < -0.1
    assert robust.values["AveragePerformanceDrop/ID/repeats=4"] == pytest.approx(0, abs=0.01)
    assert robust.values["AveragePerformanceDrop/OOD/repeats=4"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", ["camelyon", "tcga", "tolkach_esca"])
def test_published_training_sets_keep_their_size_and_correlate_more_and_more(name):
    design = DESIGNS[name]
    n_sets, n_centres, n_classes = design.slides.shape
    assert (n_centres, n_classes) == (len(design.centres), len(design.classes))
    assert sorted(design.classes) == list(range(n_classes))
    assert design.slides.min() >= 0 and design.slides.max() == design.most_slides
    dependence = []
    for slides in design.slides:
        # Each class and each centre has as many slides as in the other sets.
        assert (slides.sum(0) == design.slides[0].sum(0)).all()
        assert (slides.sum(1) == design.slides[0].sum(1)).all()
        expected = np.outer(slides.sum(1), slides.sum(0)) / slides.sum()
        dependence.append(np.abs(slides - expected).sum())
    assert dependence[0] == 0
    assert (np.diff(dependence) > 0).all()
    assert n_sets == {"camelyon": 8, "tcga": 7, "tolkach_esca": 4}[name]


def test_slides_of_several_classes_are_never_in_training_and_testing():
    shared = [["s0", "s1", "s2", "s3", "s4", "s5"], ["s3", "s4", "s5", "s6", "s7", "s8"]]
    sets = sets_of_test_slides(shared, 1)
    assert len(sets) == 3 + 3 * 3  # one of the shared three, or one of each class's own
    for own in sets:
        assert all(len(set(own) & set(slides)) == 1 for slides in shared)


def test_test_slides_are_of_whole_slides_if_they_have_several_classes():
    design = dataclasses.replace(SMALL, shared_slides=True)
    cells = [
        [[(f"{centre}{slide + offset}", [slide]) for slide in range(6)] for offset in (0, 3)]
        for centre in "AB"
    ]
    for drawn in performance_drop._draw(cells, design, 8):
        assert len(drawn) == 2
        for own in cells:
            trained = {name for slides in own for name, _ in slides[:5]}
            tested = {name for slides in own for name, _ in slides[5:]}
            assert not trained & tested


def test_only_20_repeats_are_as_published_and_0_leave_the_drop_out():
    assert AveragePerformanceDrop("camelyon").names == [
        "AveragePerformanceDrop/ID",
        "AveragePerformanceDrop/OOD",
    ]
    tiles = draw()
    assert AveragePerformanceDrop("small", 0).compute(tiles, tiles).values == {}


@pytest.mark.parametrize(("dataset", "n_repeats"), [("other", 20), ("camelyon", -1)])
def test_impossible_settings_are_an_error(dataset, n_repeats):
    with pytest.raises(UserError, match="Expected camelyon, tcga, tolkach_esca"):
        AveragePerformanceDrop(dataset, n_repeats)


def test_too_few_slides_are_told():
    tiles = draw(n_slides=5)
    with pytest.raises(UserError, match="class 1 of A has 5 slides .* 6 slides of 4 are needed"):
        AveragePerformanceDrop("small").compute(tiles, tiles)


def test_a_list_without_other_centres_is_told():
    tiles = draw()
    tiles.groups["listed"][:] = [entry.replace("OOD", "ID") for entry in tiles.groups["listed"]]
    with pytest.raises(UserError, match="list tiles has no tiles of the subset OOD"):
        AveragePerformanceDrop("small").compute(tiles, tiles)
