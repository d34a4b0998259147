"""PathoROB's average performance drop: what a classifier loses if class and centre correlate."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.listed_tiles import OUT_OF_DOMAIN, subsets_of
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult
from g2l_plugin.metrics.performance_drop_designs import DESIGNS, Design, sets_of_test_slides

PERFORMANCE_DROP = MetricFamily(
    key="performance_drop",
    title="Average performance drop (PathoROB, as published)",
    about="Relative change of a linear probe's balanced accuracy as class and centre correlate "
    "more in its training tiles, on known centres (ID) and others (OOD): 0 is robust, below 0 it "
    "learns the hospital (arXiv 2507.17845).",
    pattern=r"AveragePerformanceDrop/(ID|OOD)(/repeats=\d+)?",
)

_IN_DOMAIN = "ID"
_REPEATS = 20
_SEED = 1000
_CS = 10 ** np.linspace(-8, 4, 15)

Slide = tuple[str, list[int]]
"""Name of a slide, and the indices of its tiles of one class."""


class AveragePerformanceDrop(EmbeddingMetric):
    """PathoROB's APD, `AveragePerformanceDrop/ID` and `AveragePerformanceDrop/OOD`.

    Logistic regression is trained on tiles of the same number of slides, in which class and centre
    are independent at first and correlate more from set to set. Its balanced accuracy is a_0, a_1,
    ..., a_S, on other slides of the same centres (ID) and on other centres (OOD). The drop is
    the mean of a_s / a_0 over s = 1 ... S, minus 1: negative if accuracy is lost. It is the mean
    over 20 repeats, each with slides drawn anew. The inverse penalty C is that of 15 between 1e-8
    and 1e4 with the best balanced accuracy on validation tiles. As in PathoROB, L-BFGS stops after
    100 iterations, converged or not.

    TCGA, CAMELYON and Tolkach ESCA need 2,100, 2,400 and 1,200 fits, most of them of thousands of
    tiles.

    For Tolkach ESCA, PathoROB's code depends on the order of a Python set, so it gives other draws
    each time. Ours are drawn from the same sets of test slides.

    Source: Kömen et al. 2025 (arXiv 2507.17845), the average performance drop; numbers and seeds
    as in https://github.com/bifold-pathomics/PathoROB.
    """

    def __init__(self, dataset: str, n_repeats: int = _REPEATS) -> None:
        """Initializes the metric.

        Args:
            dataset: Dataset of PathoROB: `camelyon`, `tcga` or `tolkach_esca`.
            n_repeats: Number of repeats; with another number than 20, the drop is not as published,
                and its name says so. 0 leaves the drop out.

        Raises:
            UserError: The dataset is unknown, or the number below 0.
        """
        if dataset not in DESIGNS or n_repeats < 0:
            raise UserError(
                f"The dataset is {dataset} and the number of repeats {n_repeats}. Expected "
                f"{', '.join(DESIGNS)}, and 20, or 0 for no drop."
            )
        self.dataset, self.n_repeats = dataset, n_repeats

    @property
    @override
    def names(self) -> Sequence[str]:
        end = "" if self.n_repeats == _REPEATS else f"/repeats={self.n_repeats}"
        return [f"AveragePerformanceDrop/{domain}{end}" for domain in (_IN_DOMAIN, OUT_OF_DOMAIN)]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if not self.n_repeats:
            return MetricResult({})
        design = DESIGNS[self.dataset]
        cells, out_of_domain = _cells(evaluated, design)
        labels = _relabel(evaluated.labels, design.classes)
        values = evaluated.values.astype(np.float64)  # as PathoROB's code fits
        accuracies = np.empty((2, len(design.slides), self.n_repeats))
        bar = tqdm(desc="Performance drop", total=accuracies[0].size, unit="fit", leave=False)
        with bar:
            for repeat, drawn in enumerate(_draw(cells, design, self.n_repeats)):
                for step in range(len(design.slides)):
                    parts = [*_divide(drawn, design, step), out_of_domain]
                    sets = [(values[rows], labels[rows]) for rows in parts]
                    accuracies[:, step, repeat] = _train_and_test(*sets)
                    bar.update()
        drops = (accuracies[:, 1:] / accuracies[:, :1]).mean(axis=1) - 1
        return MetricResult(
            dict(zip(self.names, drops.mean(axis=1).tolist(), strict=True)),
            details={
                "performance_drop": {
                    "dataset": self.dataset,
                    "repeats": self.n_repeats,
                    **{
                        domain: {"accuracies": own.mean(axis=1).tolist(), "drops": drop.tolist()}
                        for domain, own, drop in zip(
                            (_IN_DOMAIN, OUT_OF_DOMAIN), accuracies, drops, strict=True
                        )
                    },
                }
            },
        )


def _cells(tiles: Embeddings, design: Design) -> tuple[list[list[list[Slide]]], np.ndarray]:
    """Slides of each centre and class in the order of the list, and out-of-domain tiles."""
    subsets = subsets_of(tiles, design.tiles)
    for name in (_IN_DOMAIN, OUT_OF_DOMAIN):
        if name not in subsets:
            raise UserError(f"PathoROB's list {design.tiles} has no tiles of the subset {name}")
    for name in ("centre", "slide"):
        if name not in tiles.groups:
            raise UserError(f"the {name} of the tiles is unknown")
    found: dict[tuple[str, int], dict[str, list[int]]] = {}
    for row in subsets[_IN_DOMAIN].tolist():
        cell = found.setdefault((str(tiles.groups["centre"][row]), int(tiles.labels[row])), {})
        cell.setdefault(str(tiles.groups["slide"][row]), []).append(row)
    cells = []
    for centre in design.centres:
        own = [list(found.get((centre, label), {}).items()) for label in design.classes]
        for label, slides in zip(design.classes, own, strict=True):
            least = design.most_slides + 2  # one to validate and one to test
            sizes = {len(rows) for _, rows in slides}
            if len(slides) < least or sizes != {design.tiles_per_slide}:
                raise UserError(
                    f"class {label} of {centre} has {len(slides)} slides of {sizes or 'no'} tiles, "
                    f"and {least} slides of {design.tiles_per_slide} are needed"
                )
        cells.append(own)
    return cells, subsets[OUT_OF_DOMAIN]


def _relabel(labels: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Numbers the classes in PathoROB's order, on which the fitted weights depend a little."""
    places = {label: place for place, label in enumerate(classes)}
    return np.array([places.get(label, -1) for label in labels.tolist()])


def _draw(
    cells: list[list[list[Slide]]], design: Design, n_repeats: int
) -> Iterator[list[list[np.ndarray]]]:
    """Yields, for each repeat, the tiles of each centre and class in an order drawn by slide.

    As in PathoROB's code, a repeat shuffles the order of the one before.
    """
    held_out: list[list[tuple[str, ...]]] = []
    if design.shared_slides:
        n_test = len(cells[0][0]) - design.most_slides - 1
        held_out = [
            sets_of_test_slides([[name for name, _ in slides] for slides in own], n_test)
            for own in cells
        ]
        if not all(held_out):
            raise UserError("no set of slides has equally many of each class to test on")
    for seed in random.Random(_SEED).sample(range(10_000), n_repeats):
        rng = random.Random(seed)
        chosen = [sets[rng.randint(0, len(sets) - 1)] for sets in held_out]
        for centre, own in enumerate(cells):
            for slides in own:
                rng.shuffle(slides)
                if chosen:  # those for testing come last
                    slides.sort(key=lambda slide: slide[0] in chosen[centre])
        yield [[np.concatenate([rows for _, rows in slides]) for slides in own] for own in cells]


def _divide(
    drawn: list[list[np.ndarray]], design: Design, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and in-domain test tiles of a training set."""
    train, validation, test = [], [], []
    for centre, own in enumerate(drawn):
        for place, rows in enumerate(own):
            n_train = int(design.slides[step, centre, place]) * design.tiles_per_slide
            train.append(rows[:n_train])
            validation.append(rows[n_train : n_train + n_train // design.most_slides])
            test.append(rows[(design.most_slides + 1) * design.tiles_per_slide :])
    return np.concatenate(train), np.concatenate(validation), np.concatenate(test)


Labelled = tuple[np.ndarray, np.ndarray]
"""Embeddings (N, D) and labels (N,)."""


def _train_and_test(train: Labelled, validation: Labelled, *tests: Labelled) -> list[float]:
    """Balanced accuracy on each test set of the regression that is best on validation tiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A test set may lack a class that is predicted.
        warnings.filterwarnings("ignore", "y_pred contains classes", UserWarning)
        models = [LogisticRegression(C=c).fit(*train) for c in _CS]
        scores = [_score(model, validation) for model in models]
        best = models[int(np.argmax(scores))]
        return [_score(best, test) for test in tests]


def _score(model: LogisticRegression, tiles: Labelled) -> float:
    values, labels = tiles
    return float(balanced_accuracy_score(labels, model.predict(values)))
