import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.probe import Auroc, LogisticProbe


def make(n, seed, n_classes=3, width=8, separation=1.5):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    values = generator.normal(size=(n, width)) + separation * np.eye(n_classes, width)[labels]
    names = np.array([f"{seed}/{i}" for i in range(n)])
    patients = np.array([f"patient {i // 6}" for i in range(n)])
    return Embeddings(values.astype(np.float32), labels, names, {"patient": patients})


def expected_calibration_error(scores, labels, n_bins=15):
    """Guo et al. 2017, equation 3, a bin at a time."""
    confidence, correct = scores.max(1).astype(float), scores.argmax(1) == labels
    error = 0.0
    for low in np.arange(n_bins) / n_bins:
        inside = (confidence > low) & (confidence <= low + 1 / n_bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            error += inside.sum() / len(labels) * gap
    return error


def test_the_fit_minimises_loss_and_penalty_with_unis_coefficient():
    train, test = make(90, 0), make(30, 1)
    result = LogisticProbe().compute(train, test)
    l2 = 100 / (8 * 3)
    one_hot = np.eye(3)[train.labels]

    def objective(flat):
        weights, bias = flat[:24].reshape(8, 3), flat[24:]
        likelihood = (log_softmax(train.values @ weights + bias, axis=1) * one_hot).sum()
        return l2 / 2 * (weights**2).sum() - likelihood

    best = minimize(objective, np.zeros(27)).x
    expected = np.exp(log_softmax(test.values @ best[:24].reshape(8, 3) + best[24:], axis=1))
    np.testing.assert_allclose(result.scores["logistic"], expected, atol=2e-3)
    assert result.details["logistic"]["l2"] == l2
    assert result.details["logistic"]["converged"] is True


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_values_equal_scikit_learns(n_classes):
    train, test = make(120, 0, n_classes), make(90, 1, n_classes)
    result = LogisticProbe().compute(train, test)
    scores = result.scores["logistic"]
    predicted = scores.argmax(1)
    if n_classes == 2:
        ranked = scores[:, 1]
        brier = brier_score_loss(test.labels, ranked)
    else:  # scikit-learn has it for several classes from 1.7 on
        ranked = scores / scores.sum(1, keepdims=True)
        brier = np.square(scores - np.eye(n_classes)[test.labels]).sum(1).mean()
    assert result.values == pytest.approx(
        {
            "LogisticAccuracy": np.mean(predicted == test.labels),
            "LogisticBalancedAccuracy": balanced_accuracy_score(test.labels, predicted),
            "LogisticAUROC": roc_auc_score(test.labels, ranked, multi_class="ovr"),
            "LogisticECE": expected_calibration_error(scores, test.labels),
            "LogisticBrier": brier,
        }
    )
    for name in ("LogisticAccuracy", "LogisticAUROC", "LogisticBrier"):
        ends = result.details["intervals"][name]
        assert 0 < ends["low"] < result.values[name] < ends["high"] <= 1


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(2, 4))
def test_the_auroc_of_resampled_rows_with_ties_equals_scikit_learns(seed, n_classes):
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


def test_calibration_sees_probabilities_that_are_too_sure():
    train, test = make(60, 0, separation=0.8), make(600, 1, separation=0.8)
    fitted, sure = (LogisticProbe(l2=l2).compute(train, test).values for l2 in (10, 1e-6))
    assert sure["LogisticECE"] > fitted["LogisticECE"] + 0.05
    assert sure["LogisticBrier"] > fitted["LogisticBrier"] + 0.05


def test_a_class_that_is_not_evaluated_leaves_the_auroc_undefined():
    train, test = make(90, 0), make(30, 1)
    test.labels[test.labels == 1] = 0
    result = LogisticProbe().compute(train, test)
    assert "LogisticAUROC" not in result.values
    assert result.undefined["LogisticAUROC"] == "the evaluated split has no tile of class 1"
    assert result.values["LogisticAccuracy"] > 0.3
    assert result.scores["logistic"].shape == (30, 3)


def test_classes_missing_from_training_are_an_error():
    train, test = make(90, 0, n_classes=2), make(30, 1, n_classes=4)
    with pytest.raises(UserError, match="No training tile has class 2, 3"):
        LogisticProbe().compute(train, test)
    with pytest.raises(UserError, match="All 90 training tiles have the same class"):
        LogisticProbe().compute(make(90, 0, n_classes=1), make(30, 1, n_classes=1))


def test_the_coefficient_can_be_set_and_must_be_above_0():
    train, test = make(90, 0), make(30, 1)
    strong, weak = (LogisticProbe(l2=l2).compute(train, test) for l2 in (1e4, 1e-2))
    assert strong.details["logistic"]["l2"] == 1e4
    assert strong.scores["logistic"].max() < 0.4 < 0.9 < weak.scores["logistic"].max()
    with pytest.raises(UserError, match="The L2 coefficient is 0. Expected one above 0"):
        LogisticProbe(l2=0)


def test_classes_with_gaps_keep_their_columns():
    train, test = make(90, 0, n_classes=2), make(30, 1, n_classes=2)
    train.labels[:] *= 3
    test.labels[:] *= 3
    scores = LogisticProbe().compute(train, test).scores["logistic"]
    assert scores.shape == (30, 4)
    assert not scores[:, 1:3].any()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


def test_a_fit_that_does_not_converge_is_warned_about_once_in_our_words():
    said = []
    handler = logger.add(said.append, format="{message}", level="WARNING")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = LogisticProbe(max_iter=2).compute(make(90, 0), make(30, 1))
    logger.remove(handler)
    assert result.details["logistic"]["converged"] is False
    assert result.details["logistic"]["iterations"] == 2
    assert said == [
        "Logistic regression did not converge in 2 iterations. Its values come from the last "
        "iteration; raise `max_iter` for better ones.\n"
    ]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_unis_solver_reaches_the_least_of_its_objective(n_classes):
    train, test = make(120, 0, n_classes), make(90, 1, n_classes)
    result = LogisticProbe(solver="uni").compute(train, test)
    width, names = train.values.shape[1], np.arange(n_classes)
    l2 = 100 / (width * n_classes)
    assert result.details["logistic"]["l2"] == l2 and result.details["logistic"]["converged"]

    def objective(flat):
        weights, bias = np.split(flat, [width * n_classes])
        weights = weights.reshape(n_classes, width)
        logits = train.values @ weights.T + bias
        losses = logsumexp(logits, axis=1) - logits[np.arange(120), train.labels]
        return losses.mean() + l2 / 2 * np.linalg.norm(weights)

    start = np.random.default_rng(0).normal(size=(width + 1) * n_classes) * 0.1
    weights, bias = np.split(minimize(objective, start, tol=1e-9).x, [width * n_classes])
    expected = softmax(test.values @ weights.reshape(n_classes, width).T + bias, axis=1)
    np.testing.assert_allclose(result.scores["logistic"][:, names], expected, atol=0.01)


def test_an_unknown_solver_is_an_error():
    with pytest.raises(UserError, match="solver is 'liblinear'. Expected scikit-learn or uni"):
        LogisticProbe(solver="liblinear")
