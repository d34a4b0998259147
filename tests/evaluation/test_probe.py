import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embeddings import Embeddings
from g2l_plugin.evaluation.probe import Auroc, LogisticProbe


def make(n, seed, n_classes=3, width=8, separation=1.5):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    values = generator.normal(size=(n, width)) + separation * np.eye(n_classes, width)[labels]
    names = np.array([f"{seed}/{i}" for i in range(n)])
    patients = np.array([f"patient {i // 6}" for i in range(n)])
    return Embeddings(values.astype(np.float32), labels, names, {"patient": patients})


def test_it_is_the_minimum_of_loss_and_penalty_with_unis_coefficient():
    train, test = make(90, 0), make(30, 1)
    outcome = LogisticProbe().measure(train, test)
    l2 = 100 / (8 * 3)
    one_hot = np.eye(3)[train.labels]

    def objective(flat):
        weights, bias = flat[:24].reshape(8, 3), flat[24:]
        likelihood = (log_softmax(train.values @ weights + bias, axis=1) * one_hot).sum()
        return l2 / 2 * (weights**2).sum() - likelihood

    best = minimize(objective, np.zeros(27)).x
    expected = np.exp(log_softmax(test.values @ best[:24].reshape(8, 3) + best[24:], axis=1))
    np.testing.assert_allclose(outcome.scores["logistic"], expected, atol=2e-3)
    assert outcome.details["logistic"]["l2"] == l2
    assert outcome.details["logistic"]["converged"] is True


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_figures_are_scikit_learns(n_classes):
    train, test = make(120, 0, n_classes), make(90, 1, n_classes)
    outcome = LogisticProbe().measure(train, test)
    scores = outcome.scores["logistic"]
    predicted = scores.argmax(1)
    ranked = scores[:, 1] if n_classes == 2 else scores / scores.sum(1, keepdims=True)
    assert outcome.values == pytest.approx(
        {
            "LogisticAccuracy": np.mean(predicted == test.labels),
            "LogisticBalancedAccuracy": balanced_accuracy_score(test.labels, predicted),
            "LogisticAUROC": roc_auc_score(test.labels, ranked, multi_class="ovr"),
        }
    )
    for name in ("LogisticAccuracy", "LogisticAUROC"):
        ends = outcome.details["intervals"][name]
        assert 0 < ends["low"] < outcome.values[name] < ends["high"] <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, 4))
def test_the_area_of_drawn_rows_with_equal_scores_is_scikit_learns(seed, n_classes):
    generator = np.random.default_rng(seed)
    labels = np.r_[np.arange(n_classes), generator.integers(n_classes, size=20)]
    scores = generator.integers(1, 4, size=(len(labels), n_classes)).astype(np.float32)
    scores /= scores.sum(1, keepdims=True)
    rows = generator.integers(len(labels), size=len(labels))
    ours = Auroc(scores, labels)(rows)
    if len(set(labels[rows])) < n_classes:
        assert np.isnan(ours)
    else:
        ranked = scores[rows, 1] if n_classes == 2 else scores[rows]
        expected = roc_auc_score(labels[rows], ranked, multi_class="ovr")
        assert ours == pytest.approx(expected)


def test_a_class_that_is_not_evaluated_leaves_the_area_undefined():
    train, test = make(90, 0), make(30, 1)
    test.labels[test.labels == 1] = 0
    outcome = LogisticProbe().measure(train, test)
    assert "LogisticAUROC" not in outcome.values
    assert outcome.undefined["LogisticAUROC"] == "the evaluated split has no tile of class 1"
    assert outcome.values["LogisticAccuracy"] > 0.3
    assert outcome.scores["logistic"].shape == (30, 3)


def test_classes_that_training_lacks_are_an_error():
    train, test = make(90, 0, n_classes=2), make(30, 1, n_classes=4)
    with pytest.raises(UserError, match="No training tile is of class 2, 3"):
        LogisticProbe().measure(train, test)
    with pytest.raises(UserError, match="All 90 training tiles are of one class"):
        LogisticProbe().measure(make(90, 0, n_classes=1), make(30, 1, n_classes=1))


def test_the_coefficient_can_be_given_and_must_be_above_0():
    train, test = make(90, 0), make(30, 1)
    strong, weak = (LogisticProbe(l2=l2).measure(train, test) for l2 in (1e4, 1e-2))
    assert strong.details["logistic"]["l2"] == 1e4
    assert strong.scores["logistic"].max() < 0.4 < 0.9 < weak.scores["logistic"].max()
    with pytest.raises(UserError, match="The L2 coefficient is 0. Expected one above 0"):
        LogisticProbe(l2=0)


def test_classes_with_gaps_keep_their_columns():
    train, test = make(90, 0, n_classes=2), make(30, 1, n_classes=2)
    train.labels[:] *= 3
    test.labels[:] *= 3
    scores = LogisticProbe().measure(train, test).scores["logistic"]
    assert scores.shape == (30, 4)
    assert not scores[:, 1:3].any()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


def test_where_it_does_not_converge_it_says_so_once_and_not_as_scikit_learn_does():
    said = []
    handler = logger.add(said.append, format="{message}", level="WARNING")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = LogisticProbe(max_iter=2).measure(make(90, 0), make(30, 1))
    logger.remove(handler)
    assert outcome.details["logistic"]["converged"] is False
    assert outcome.details["logistic"]["iterations"] == 2
    assert said == [
        "Logistic regression has not converged in 2 iterations: its figures are those of where it "
        "stopped.\n"
    ]
