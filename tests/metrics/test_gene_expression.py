import numpy as np
import pytest
import torch
from loguru import logger
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.gene_expression import GeneExpression, MeanPearson
from g2l_plugin.metrics.gene_table import read_genes, write_genes
from g2l_plugin.metrics.metric import compute_all

GENES = [f"GENE{number}" for number in range(6)]


@pytest.fixture
def make(tmp_path):
    """Writes the genes of tiles that a linear model predicts in part; returns their embeddings."""

    def write(n_tiles=450, n_features=20, change=lambda expression, folds: None):
        rng = np.random.default_rng(0)
        values = rng.normal(1, 2, (n_tiles, n_features)).astype(np.float32)
        rate = np.exp(values[:, :4] @ rng.normal(0, 0.3, (4, len(GENES))))
        expression = np.log1p(rng.poisson(rate))
        folds = np.arange(n_tiles) * 3 // n_tiles
        change(expression, folds)
        names = np.array([f"tiles/{number}.png" for number in range(n_tiles)])
        order = rng.permutation(n_tiles)  # of the table's rows, which is not the tiles'
        path = tmp_path / "genes.parquet"
        write_genes(path, names[order], GENES, expression[order])
        tiles = Embeddings(values, np.zeros(n_tiles, int), names, {"fold": folds.astype(str)})
        return tiles, str(path), expression, folds

    return write


def compute(tiles, path, *protocols, n_components=256):
    metric = GeneExpression(path, protocols or ("pca_ridge",), n_components)
    return compute_all([metric], tiles, tiles)


def hest_by_the_book(values, expression, folds, components):
    """One gene at a time, as HEST-Benchmark describes it; mean and deviation over the folds."""
    of_folds = []
    for fold in np.unique(folds):
        train, test = values[folds != fold], values[folds == fold]
        if components:
            scaler, pca = StandardScaler(), PCA(components, random_state=1)
            train = pca.fit_transform(scaler.fit_transform(train)).astype(float)
            test = pca.transform(scaler.transform(test)).astype(float)
        found = []
        for gene in expression.T:
            alpha = 100 / (train.shape[1] * expression.shape[1])
            ridge = Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000)
            predicted = ridge.fit(train, gene[folds != fold]).predict(test)
            found.append(pearsonr(gene[folds == fold], predicted.astype(float))[0])
        of_folds.append(np.mean(found))
    return np.mean(of_folds), np.std(of_folds)


def test_both_protocols_agree_with_a_loop_over_folds_and_genes(make):
    # So large that scikit-learn's PCA is by random projections, as at the benchmark's size.
    tiles, path, expression, folds = make(n_tiles=900, n_features=400)
    result = compute(tiles, path, "pca_ridge", "ridge")
    for protocol, components in (("pca_ridge", 256), ("ridge", None)):
        mean, deviation = hest_by_the_book(tiles.values, expression, folds, components)
        assert result.values[f"GenePearson/{protocol}"] == pytest.approx(mean, abs=1e-6)
        assert result.values[f"GenePearsonStd/{protocol}"] == pytest.approx(deviation, abs=1e-6)
        details = result.details["gene_expression"][protocol]
        assert np.mean(list(details["folds"].values())) == pytest.approx(mean, abs=1e-6)
        of_genes = [value for own in details["genes"].values() for value in own.values()]
        assert len(of_genes) == 3 * len(GENES)
        assert np.mean(of_genes) == pytest.approx(mean, abs=1e-6)
    assert result.values["GenePearson/pca_ridge"] != result.values["GenePearson/ridge"]


def test_the_regression_is_that_of_the_closed_form(make):
    tiles, path, expression, folds = make()
    of_folds = []
    for fold in range(3):
        train, test = tiles.values[folds != fold].astype(float), tiles.values[folds == fold]
        mean, deviation = train.mean(0), train.std(0)
        train, test = (train - mean) / deviation, (test - mean) / deviation
        axes = np.linalg.svd(train, full_matrices=False)[2][:7].T
        train, test = train @ axes, test @ axes
        penalty = 100 / (7 * len(GENES)) * np.eye(7)
        weights = np.linalg.solve(train.T @ train + penalty, train.T @ expression[folds != fold])
        predicted, measured = test @ weights, expression[folds == fold]
        pairs = zip(predicted.T, measured.T, strict=True)
        of_folds.append(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
    result = compute(tiles, path, n_components=7)
    # LSQR stops at a tolerance of 1e-4.
    assert result.values["GenePearson/pca7_ridge"] == pytest.approx(np.mean(of_folds), abs=1e-3)


def test_pca_ridge_does_not_depend_on_the_scale_of_features_nor_on_the_order_of_tiles(make):
    tiles, path, *_ = make()
    rng = np.random.default_rng(1)
    order = rng.permutation(len(tiles))
    scaled = (tiles.values * rng.uniform(0.1, 10, 20) + rng.normal(0, 5, 20)).astype(np.float32)
    other = Embeddings(
        scaled[order], tiles.labels, tiles.names[order], {"fold": tiles.groups["fold"][order]}
    )
    ours, theirs = (compute(own, path, n_components=20).values for own in (tiles, other))
    assert ours["GenePearson/pca20_ridge"] > 0.2
    assert theirs == pytest.approx(ours, abs=1e-3)


def test_a_gene_without_a_correlation_is_left_out_of_its_fold_and_said(make):
    def change(expression, folds):
        expression[folds == 1, 2] = 0.5  # one value in a test fold
        expression[folds != 2, 4] = 0  # in no training tile of fold 2

    tiles, path, *_ = make(change=change)
    said = []
    handler = logger.add(said.append, level="WARNING")
    try:
        result = compute(tiles, path, "ridge")
    finally:
        logger.remove(handler)
    genes = result.details["gene_expression"]["ridge"]["genes"]
    assert list(genes["GENE2"]) == ["0", "2"] and list(genes["GENE1"]) == ["0", "1", "2"]
    # Where it is 0 in all of a fold, it has one value too.
    assert list(genes["GENE4"]) == []
    assert any("2 of 6 genes" in line and "fold 1" in line and "GENE2" in line for line in said)
    of_fold_1 = [own["1"] for own in genes.values() if "1" in own]
    means = result.details["gene_expression"]["ridge"]["folds"]
    assert means["1"] == pytest.approx(np.mean(of_fold_1)) and len(of_fold_1) == 4
    assert result.values["GenePearson/ridge"] == pytest.approx(np.mean(list(means.values())))


def test_what_cannot_be_computed_is_undefined_with_its_reason(make):
    tiles, path, *_ = make()
    result = compute(tiles, path, "pca_ridge", "ridge")
    assert (
        "20 features have no 256 principal components" in result.undefined["GenePearson/pca_ridge"]
    )
    assert result.values["GenePearson/ridge"] > 0.2
    alike = Embeddings(np.ones_like(tiles.values), tiles.labels, tiles.names, tiles.groups)
    result = compute(alike, path, "pca_ridge", "ridge", n_components=5)
    assert not result.values
    assert all("embeddings are alike" in reason for reason in result.undefined.values())
    without_folds = Embeddings(tiles.values, tiles.labels, tiles.names)
    assert "folds" in compute(without_folds, path).undefined["GenePearsonStd/pca_ridge"]
    same = make(change=lambda expression, folds: expression.fill(0))[0]
    assert "no gene varies" in compute(same, path, "ridge").undefined["GenePearson/ridge"]


def test_tiles_that_the_table_lacks_are_named(make, tmp_path):
    _, path, expression, _ = make(n_tiles=9)
    values, genes = read_genes(path, ["tiles/7.png", "tiles/0.png"])
    assert genes == GENES
    assert (values == expression[[7, 0]]).all()
    with pytest.raises(UserError, match="lacks 1 of 2 tiles, such as tiles/x.png"):
        read_genes(path, ["tiles/7.png", "tiles/x.png"])
    with pytest.raises(UserError, match="cannot be read from .*none.parquet.*g2l prepare hest"):
        read_genes(tmp_path / "none.parquet", ["a"])


def test_an_unknown_protocol_is_refused_and_none_leaves_the_benchmark_out(make):
    with pytest.raises(UserError, match="no protocol 'pca'"):
        GeneExpression("genes.parquet", ["pca"])
    with pytest.raises(UserError, match="components is 0"):
        GeneExpression("genes.parquet", n_components=0)
    metric = GeneExpression("genes.parquet", [])
    tiles, *_ = make(n_tiles=9)
    assert compute_all([metric], tiles, tiles).values == {}


def test_the_metric_of_a_head_is_the_mean_over_its_outputs():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(40, 3)).astype(np.float32)
    predictions = targets + rng.normal(size=(40, 3)).astype(np.float32)
    targets[:, 1] = 2  # has no correlation
    metric = MeanPearson(num_outputs=3)
    for rows in np.split(np.arange(40), [16, 39]):  # the last batch has one tile
        metric.update(torch.from_numpy(predictions[rows]), torch.from_numpy(targets[rows]))
    expected = [pearsonr(predictions[:, n], targets[:, n])[0] for n in (0, 2)]
    assert float(metric.compute()) == pytest.approx(np.mean(expected), abs=1e-5)
