"""Logistic regression on frozen embeddings: a linear probe that fits in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from loguru import logger
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from torchmetrics.functional.classification import multiclass_calibration_error
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.bootstrap import bootstrap_interval
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult, check_classes

LOGISTIC = MetricFamily(
    key="logistic",
    title="Logistic probe, AUROC",
    about="Logistic regression on frozen embeddings; area under the ROC curve, one class against "
    "the rest.",
    pattern="LogisticAUROC",
    column="logistic AUROC",
)
CALIBRATION = MetricFamily(
    key="calibration",
    title="Calibration error of the logistic probe",
    about="How far the probabilities of the predicted classes are from the share that is right "
    "(expected calibration error, 15 bins): 0.05 is five percentage points. Smaller is better.",
    pattern="LogisticECE",
    smaller_is_better=True,
)

_BINS = 15


class FittedProbe(NamedTuple):
    """A fitted regression.

    Attributes:
        model: The regression; two classes have one row of coefficients.
        l2: Coefficient of its penalty.
        converged: Whether the solver converged.
    """

    model: LogisticRegression
    l2: float
    converged: bool


class LogisticProbe(EmbeddingMetric):
    """Logistic regression: accuracies, `LogisticAUROC`, `LogisticECE` and `LogisticBrier`.

    Source: UNI (Chen et al. 2024, arXiv 2308.15474): L-BFGS with at most 1,000 iterations on
    embeddings that are not standardised, and a coefficient of 100 / (M K) for embeddings of width M
    and K classes. Its published code has two solvers, with objectives that differ:

    - `scikit-learn`, the default here and an option there: the sum of the losses plus the
      coefficient times half the squared norm of the weights (C = M K / 100).
    - `uni`, the default there: the mean of the losses plus the coefficient times half the norm, not
      squared, from zero weights. Set it to compare with figures of UNI's code.

    UNI's code also trains on the validation tiles; here only `train` does. The AUROC is one class
    against the rest, averaged over classes if there are more than two (UNI averages over pairs of
    classes).

    The last two ask whether its probabilities can be trusted. `LogisticECE` is the expected
    calibration error of the predicted class (Guo et al. 2017, arXiv 1706.04599), in 15 bins of
    equal width. `LogisticBrier` is the mean squared error of the probabilities, summed over the
    classes (Brier 1950), or of one of them if there are two, as scikit-learn has it.
    """

    def __init__(
        self,
        max_iter: int = 1000,
        l2: float | None = None,
        solver: Literal["scikit-learn", "uni"] = "scikit-learn",
    ) -> None:
        """Initializes the metric.

        Args:
            max_iter: Maximum number of L-BFGS iterations.
            l2: Coefficient of the penalty, above 0; None uses 100 / (width x classes).
            solver: `scikit-learn` or `uni`.

        Raises:
            UserError: The coefficient is not above 0, or the solver is unknown.
        """
        if solver not in _SOLVERS:
            raise UserError(f"The solver is {solver!r}. Expected {' or '.join(_SOLVERS)}.")
        if l2 is not None and l2 <= 0:
            raise UserError(
                f"The L2 coefficient is {l2}. Expected one above 0, or null for UNI's default."
            )
        self.max_iter, self.l2, self.solver = max_iter, l2, solver

    @property
    @override
    def names(self) -> Sequence[str]:
        names = ("Accuracy", "BalancedAccuracy", "AUROC", "ECE", "Brier")
        return [f"Logistic{name}" for name in names]

    def fit(self, train: Embeddings) -> FittedProbe:
        """Fits the regression.

        Raises:
            UserError: The tiles have only one class.
        """
        n_present = len(np.unique(train.labels))
        if n_present < 2:
            raise UserError(
                f"All {len(train):,} training tiles have the same class. Logistic regression needs "
                "two."
            )
        l2 = 100 / (train.values.shape[1] * n_present) if self.l2 is None else self.l2
        model, converged = _SOLVERS[self.solver](train, l2, self.max_iter)
        if not converged:
            logger.warning(
                f"Logistic regression did not converge in {int(model.n_iter_.max()):,} iterations. "
                "Its values come from the last iteration; raise `max_iter` for better ones."
            )
        return FittedProbe(model, l2, converged)

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        labels = evaluated.labels
        check_classes(train.labels, labels)
        model, l2, converged = self.fit(train)
        n_classes = int(train.labels.max()) + 1
        scores = np.zeros((len(labels), n_classes), np.float32)
        scores[:, model.classes_] = model.predict_proba(evaluated.values)
        predicted = scores.argmax(1)
        correct = predicted == labels
        errors = np.square(scores - np.eye(n_classes)[labels]).sum(1)  # (M,)
        if len(model.classes_) == 2:  # the same error twice
            errors /= 2
        accuracy = bootstrap_interval(lambda rows: correct[rows].mean(), evaluated.units)
        brier = bootstrap_interval(lambda rows: errors[rows].mean(), evaluated.units)
        values = {
            "LogisticAccuracy": accuracy.value,
            "LogisticBalancedAccuracy": float(
                recall_score(labels, predicted, labels=np.unique(labels), average="macro")
            ),
            # Without an interval: resampled tiles have a larger calibration error than the tiles.
            "LogisticECE": float(
                multiclass_calibration_error(
                    torch.from_numpy(scores), torch.from_numpy(labels), n_classes, n_bins=_BINS
                )
            ),
            "LogisticBrier": brier.value,
        }
        intervals = {"LogisticAccuracy": accuracy.ends(), "LogisticBrier": brier.ends()}
        undefined = {}
        if missing := sorted(set(train.labels.tolist()) - set(labels.tolist())):
            undefined["LogisticAUROC"] = (
                f"the evaluated split has no tile of class {', '.join(map(str, missing))}"
            )
        else:
            auroc = bootstrap_interval(Auroc(scores[:, model.classes_], labels), evaluated.units)
            values["LogisticAUROC"] = auroc.value
            intervals["LogisticAUROC"] = auroc.ends()
        details = {
            "l2": l2,
            "solver": self.solver,
            "max_iter": self.max_iter,
            "iterations": int(model.n_iter_.max()),
            "converged": converged,
        }
        return MetricResult(
            values=values,
            undefined=undefined,
            scores={"logistic": scores},
            details={"logistic": details, "intervals": intervals},
        )


def _fit_scikit_learn(
    train: Embeddings, l2: float, max_iter: int
) -> tuple[LogisticRegression, bool]:
    model = LogisticRegression(C=1 / l2, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(train.values, train.labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return model, converged


def _fit_uni(train: Embeddings, l2: float, max_iter: int) -> tuple[LogisticRegression, bool]:
    """Fits in single precision, as UNI's code does; the result predicts as scikit-learn's do."""
    classes, targets = np.unique(train.labels, return_inverse=True)
    with torch.inference_mode(False), torch.enable_grad():  # eva tests without gradients
        values, labels = torch.from_numpy(train.values).float(), torch.from_numpy(targets)
        layer = torch.nn.Linear(values.shape[1], len(classes))
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=max_iter, line_search_fn="strong_wolfe"
        )

        def objective() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(values), labels) + l2 * layer.weight.norm() / 2
            loss.backward()
            return loss

        optimizer.step(objective)  # type: ignore[arg-type]
    n_iter = optimizer.state_dict()["state"][0]["n_iter"]
    model = LogisticRegression()
    model.classes_, model.n_iter_ = classes, np.array([n_iter])
    model.coef_ = layer.weight.detach().numpy()
    model.intercept_ = layer.bias.detach().numpy()
    if len(classes) == 2:  # scikit-learn keeps one row for two classes: the difference
        model.coef_, model.intercept_ = np.diff(model.coef_, axis=0), np.diff(model.intercept_)
    return model, n_iter < max_iter


_SOLVERS = {"scikit-learn": _fit_scikit_learn, "uni": _fit_uni}


class Auroc:
    """Area under the ROC curve (AUROC) of some rows; NaN if they lack a class.

    scikit-learn's `roc_auc_score` would sort the rows in every bootstrap resample. This sorts them
    once and counts repeated rows as weights, so a thousand resamples are quick.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Sorts the rows.

        Args:
            scores: Class probabilities (M, C).
            labels: Classes (M,); all C occur.
        """
        classes = np.unique(labels)
        columns = [1] if len(classes) == 2 else range(len(classes))
        self._curves = []
        for column in columns:
            order = np.argsort(scores[:, column], kind="stable")
            ascending = scores[order, column]
            starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
            self._curves.append((order, starts, labels[order] == classes[column]))

    def __call__(self, rows: np.ndarray) -> float:
        """Computes the AUROC of some rows, given as int indices with repeats."""
        weights = np.bincount(rows, minlength=len(self._curves[0][0])).astype(np.float64)
        areas = []
        for order, starts, positive in self._curves:
            weight = weights[order]
            positives = np.add.reduceat(weight * positive, starts)
            negatives = np.add.reduceat(weight * ~positive, starts)
            if not positives.any() or not negatives.any():
                return np.nan
            below = np.cumsum(negatives) - negatives / 2  # an equal score counts half
            areas.append((positives * below).sum() / (positives.sum() * negatives.sum()))
        return float(np.mean(areas))
