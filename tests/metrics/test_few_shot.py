"""Few-shot curves, against the same protocol with scikit-learn's nearest centroid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.few_shot import FewShot

# Of scikit-learn, which divides by no tiles at k = 1.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def make(n, seed, n_classes=3, width=8, separation=1.2, shift=0.0):
    generator = np.random.default_rng(seed)
    labels = np.r_[np.arange(n_classes).repeat(4), generator.integers(n_classes, size=n)]
    values = generator.normal(size=(len(labels), width)) + shift
    values += separation * np.eye(n_classes, width)[labels]
    names = np.array([f"{seed}/{i}" for i in range(len(labels))])
    return Embeddings(values.astype(np.float32), labels, names)


def values_of_draws(train, test, k, n_draws, seed, largest):
    """The protocol, a draw at a time."""
    generator = np.random.default_rng(seed)
    accuracies = []
    for _ in range(n_draws):
        rows = np.concatenate(
            [
                generator.choice(np.flatnonzero(train.labels == name), largest, replace=False)[:k]
                for name in np.unique(train.labels)
            ]
        )
        drawn, queries = train.values[rows].astype(float), test.values.astype(float)
        centre = drawn.mean(0)
        model = NearestCentroid().fit(normalize(drawn - centre), train.labels[rows])
        predicted = model.predict(normalize(queries - centre))
        accuracies.append(balanced_accuracy_score(test.labels, predicted))
    return accuracies


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(2, 4), st.sampled_from([0.0, 30.0]))
def test_each_k_equals_scikit_learns_nearest_centroid_over_the_same_draws(seed, n_classes, shift):
    train, test = make(40, seed, n_classes, shift=shift), make(30, seed + 1, n_classes, shift=shift)
    result = FewShot(k=[1, 2, 4], n_draws=5, seed=seed, device="cpu").compute(train, test)
    for k in (1, 2, 4):
        expected = values_of_draws(train, test, k, 5, seed, largest=4)
        assert result.values[f"FewShotBalancedAccuracy/k={k}"] == pytest.approx(np.mean(expected))
        ends = result.details["intervals"][f"FewShotBalancedAccuracy/k={k}"]
        low, high = np.percentile(expected, [2.5, 97.5])
        assert (ends["low"], ends["high"]) == pytest.approx((low, high))


def test_more_labels_help_and_draws_vary_less():
    train, test = make(300, 0), make(300, 1)
    result = FewShot(k=[1, 20], device="cpu").compute(train, test)
    few, many = (f"FewShotBalancedAccuracy/k={k}" for k in (1, 20))
    assert 1 / 3 < result.values[few] < result.values[many]
    widths = {
        name: ends["high"] - ends["low"] for name, ends in result.details["intervals"].items()
    }
    assert widths[many] < widths[few] / 2


def test_embeddings_that_say_nothing_give_chance():
    train, test = make(300, 0, separation=0), make(300, 1, separation=0)
    result = FewShot(k=[5], device="cpu").compute(train, test)
    assert result.values["FewShotBalancedAccuracy/k=5"] == pytest.approx(1 / 3, abs=0.03)


def test_the_same_seed_gives_the_same_values_and_another_seed_others():
    train, test = make(60, 0), make(60, 1)
    first, again, other = (
        FewShot(k=[2], n_draws=9, seed=seed, device="cpu").compute(train, test).values
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_k_that_the_rarest_class_does_not_have_is_undefined_with_the_reason():
    train, test = make(60, 0), make(60, 1)
    train.labels[np.flatnonzero(train.labels == 1)[3:]] = 0
    result = FewShot(k=[1, 5], device="cpu").compute(train, test)
    assert list(result.values) == ["FewShotBalancedAccuracy/k=1"]
    assert result.undefined == {
        "FewShotBalancedAccuracy/k=5": "of class 1, the training split has only 3"
    }
    result = FewShot(k=[5, 10], device="cpu").compute(train, test)
    assert not result.values and len(result.undefined) == 2


def test_a_class_that_is_not_evaluated_is_still_a_candidate():
    train, test = make(60, 0), make(60, 1)
    test = Embeddings(*(part[test.labels != 2] for part in (test.values, test.labels, test.names)))
    result = FewShot(k=[4], n_draws=6, device="cpu").compute(train, test)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = values_of_draws(train, test, 4, 6, 0, largest=4)
    assert result.values["FewShotBalancedAccuracy/k=4"] == pytest.approx(np.mean(expected))


def test_impossible_settings_and_embeddings_are_an_error():
    train, test = make(60, 0), make(60, 1)
    with pytest.raises(UserError, match=r"Got k \[0, 5\] and n_draws 100"):
        FewShot(k=[0, 5])
    with pytest.raises(UserError, match="at least one draw"):
        FewShot(n_draws=0)
    with pytest.raises(UserError, match="No training tile has class 3"):
        FewShot(device="cpu").compute(train, make(60, 1, n_classes=4))
    single = make(60, 0, n_classes=1)
    with pytest.raises(UserError, match="All 64 training tiles have the same class"):
        FewShot(device="cpu").compute(single, single)
    test.values[3] = np.nan
    with pytest.raises(UserError, match="1 of 72 embeddings are not finite"):
        FewShot(k=[1], device="cpu").compute(train, test)
