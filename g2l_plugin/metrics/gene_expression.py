"""HEST-Benchmark: how well a linear model predicts gene expression from embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from loguru import logger
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchmetrics.regression import PearsonCorrCoef
from tqdm import tqdm
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.gene_table import FOLD, read_genes
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricFamily, MetricResult

EXPRESSION = MetricFamily(
    key="gene_expression",
    title="Gene expression (HEST-Benchmark)",
    about="Correlation of measured and predicted expression, mean over genes and folds (arXiv "
    "2406.16192). pca_ridge is the protocol of HEST's leaderboard; ridge has no PCA, as in the "
    "paper's Table A13. The two rank models differently.",
    pattern=r"GenePearson/\w+",
    column="gene expression",
)

Protocol = Literal["pca_ridge", "ridge"]

_PROTOCOLS = ("pca_ridge", "ridge")
_N_COMPONENTS = 256
_SEED = 1
_ROUNDING = 1e-6
"""Predictions that differ by less, relative to their size, are one value."""


class GeneExpression(EmbeddingMetric):
    """HEST-Benchmark: `GenePearson/pca_ridge` and `GenePearson/ridge`, and `GenePearsonStd/...`.

    For each of the published folds, ridge regression is fitted on the tiles of the other folds. Its
    value is the Pearson correlation of measured and predicted expression over the fold's tiles,
    averaged over the genes. The result is the mean over the folds, and the standard deviation (of
    the population, as numpy's). A protocol is one of two, which rank models differently
    (https://github.com/mahmoodlab/HEST/issues/144):

    - `pca_ridge`, that of the leaderboard: embeddings are standardised and reduced to 256 principal
      components, both fitted on the fold's training tiles.
    - `ridge`, that of the paper's Table A13: on the embeddings as they are.

    The penalty is 100 / (features x genes), without intercept. The solver is LSQR, which stops at a
    tolerance of 1e-4: the same embeddings in another order give values that differ by some 1e-5.

    A gene has no correlation in a fold if all its test tiles have one value, or no training tile
    has any. It is left out of the mean of that fold, with a warning, and of the details; HEST's
    code gives no number then. Embeddings that are alike make the result undefined.

    Source: Jaume et al. 2024 (arXiv 2406.16192), and src/hest/bench of
    https://github.com/mahmoodlab/HEST.
    """

    def __init__(
        self,
        genes: str,
        protocols: Sequence[Protocol] = ("pca_ridge",),
        n_components: int = _N_COMPONENTS,
    ) -> None:
        """Initializes the metric.

        Args:
            genes: The table of expression that `g2l prepare hest` writes.
            protocols: `pca_ridge`, `ridge` or both; none leaves the benchmark out.
            n_components: Principal components; with another number than 256, the result is not as
                published, and its name says so.

        Raises:
            UserError: A protocol is unknown, or the number is below 1.
        """
        if unknown := [name for name in protocols if name not in _PROTOCOLS]:
            raise UserError(
                f"There is no protocol {unknown[0]!r} of HEST-Benchmark. Expected pca_ridge (the "
                "leaderboard's), ridge (without PCA) or both."
            )
        if n_components < 1:
            raise UserError(f"The number of components is {n_components}. Expected 256.")
        self.genes, self.protocols, self.n_components = genes, list(protocols), n_components

    @property
    @override
    def names(self) -> Sequence[str]:
        kinds = ("GenePearson", "GenePearsonStd")
        return [f"{kind}/{self._label(protocol)}" for protocol in self.protocols for kind in kinds]

    @override
    def compute(self, train: Embeddings, evaluated: Embeddings) -> MetricResult:
        if not self.protocols:
            return MetricResult({})
        expression, genes = read_genes(self.genes, evaluated.names)
        if FOLD not in evaluated.groups or len(np.unique(evaluated.groups[FOLD])) < 2:
            raise UserError(
                "the published folds of the tiles are unknown, or there is only one: prepare the "
                "task with `g2l prepare hest`, and embed it again"
            )
        folds = evaluated.groups[FOLD]
        result = MetricResult({}, details={"gene_expression": {}})
        for protocol in self.protocols:
            label = self._label(protocol)
            names = [f"GenePearson/{label}", f"GenePearsonStd/{label}"]
            try:
                of_folds = {
                    fold: self._correlate(evaluated.values, expression, folds == fold, protocol)
                    for fold in tqdm(sorted(set(folds.tolist()), key=int), label, leave=False)
                }
                means = {fold: _mean(own, fold, genes) for fold, own in of_folds.items()}
            except UserError as error:
                result.undefined.update(dict.fromkeys(names, str(error)))
                continue
            values = np.array(list(means.values()))
            result.values.update(
                zip(names, (float(values.mean()), float(values.std())), strict=True)
            )
            result.details["gene_expression"][label] = {
                "folds": means,
                "genes": _by_gene(of_folds, genes),
            }
        return result

    def _label(self, protocol: str) -> str:
        if protocol == "ridge" or self.n_components == _N_COMPONENTS:
            return protocol
        return f"pca{self.n_components}_ridge"

    def _correlate(
        self, values: np.ndarray, expression: np.ndarray, test: np.ndarray, protocol: str
    ) -> np.ndarray:
        """Correlation of each gene in one fold (G,); NaN if it has none."""
        x, x_test = values[~test], values[test]
        if protocol == "pca_ridge":
            if self.n_components > min(x.shape):
                raise UserError(
                    f"{len(x):,} training tiles with {x.shape[1]:,} features have no "
                    f"{self.n_components} principal components"
                )
            reduce = make_pipeline(StandardScaler(), PCA(self.n_components, random_state=_SEED))
            # Not `fit`, then `transform`: where PCA is by random projections, they differ a little.
            # In double precision as in HEST's code, whose tensors scikit-learn reads so.
            x = reduce.fit_transform(x).astype(np.float64)
            x_test = reduce.transform(x_test).astype(np.float64)
        ridge = Ridge(
            alpha=100 / (x.shape[1] * expression.shape[1]),
            fit_intercept=False,
            max_iter=1000,
            solver="lsqr",
        )
        predicted = ridge.fit(x, expression[~test]).predict(x_test).astype(np.float64)
        measured = expression[test]
        varies = (np.ptp(measured, axis=0) > 0) & expression[~test].any(axis=0)
        if (np.ptp(predicted, axis=0) <= _ROUNDING * np.abs(predicted).max(axis=0))[varies].any():
            raise UserError("a gene is predicted alike for all tiles: their embeddings are alike")
        found = np.full(expression.shape[1], np.nan)
        if varies.any():
            found[varies] = pearsonr(measured[:, varies], predicted[:, varies], axis=0).statistic
        return found


class MeanPearson(PearsonCorrCoef):
    """The correlation of targets and predictions, mean over the outputs: for a head by eva.

    Outputs whose targets have one value have no correlation, and are left out.
    """

    @override
    def compute(self) -> torch.Tensor:
        return torch.nanmean(super().compute())


def _mean(correlations: np.ndarray, fold: str, genes: list[str]) -> float:
    """Mean over the genes of a fold (G,) that have a correlation; says which have none."""
    known = ~np.isnan(correlations)
    if not known.any():
        raise UserError(f"no gene varies in the test tiles of fold {fold} and is in its others")
    if left_out := [gene for gene, own in zip(genes, known, strict=True) if not own]:
        logger.warning(
            f"{len(left_out)} of {len(genes)} genes do not vary in the test tiles of fold {fold}, "
            f"or are in none of its others, and are left out of its mean: {', '.join(left_out)}."
        )
    return float(correlations[known].mean())


def _by_gene(of_folds: dict[str, np.ndarray], genes: list[str]) -> dict[str, dict[str, float]]:
    """Correlations by gene and fold; a fold is missing where the gene has none."""
    return {
        gene: {fold: float(own[n]) for fold, own in of_folds.items() if not np.isnan(own[n])}
        for n, gene in enumerate(genes)
    }
