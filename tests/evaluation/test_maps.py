"""Maps of embeddings, with a stand-in for umap-learn: the real one compiles for ten seconds."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

from g2l_plugin.evaluation.maps import map_embeddings
from g2l_plugin.evaluation.metric_files import write_results
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import MetricResult


@pytest.fixture
def values():
    """Embeddings (40, 6)."""
    return np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


@pytest.fixture
def umap(monkeypatch):
    """A module `umap` whose map is twice the first two features; it keeps its arguments."""
    made = []

    class UMAP:
        def __init__(self, *, n_components, n_neighbors, init, random_state, n_jobs):
            made.append({"random_state": random_state, "n_jobs": n_jobs, "init": init})
            self.n_components, self.n_neighbors = n_components, n_neighbors

        def fit_transform(self, X, y=None):
            assert len(X) > self.n_neighbors
            return 2 * X[:, : self.n_components]

    module = types.ModuleType("umap")
    module.UMAP, module.made = UMAP, made
    monkeypatch.setitem(sys.modules, "umap", module)
    return module


def test_without_umap_learn_there_is_pca_alone_and_no_word_of_it(monkeypatch, values, warned):
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    (pca,) = map_embeddings(values).values()
    centred = values - values.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(pca), np.abs(left[:, :2] * scale[:2]), atol=1e-4)
    assert not warned


def test_umap_is_drawn_from_one_seed_and_from_tiles_spread_evenly(umap, values):
    maps = map_embeddings(values)
    assert list(maps) == ["pca", "umap"] and maps["umap"].dtype == np.float32
    np.testing.assert_array_equal(maps["umap"], 2 * values[:, :2])
    many = np.random.default_rng(0).normal(size=(7_001, 3)).astype(np.float32)
    some = map_embeddings(many)["umap"]
    drawn = np.flatnonzero(~np.isnan(some).any(1))
    assert drawn.tolist() == list(range(0, 7_001, 3)) and len(drawn) <= 3_000
    np.testing.assert_array_equal(some[drawn], 2 * many[drawn, :2])
    assert umap.made == [{"random_state": 0, "n_jobs": 1, "init": "pca"}] * 2


def test_fewer_tiles_than_neighbours_have_no_umap_and_one_feature_has_no_map(umap, values):
    assert list(map_embeddings(values[:15])) == ["pca"]
    assert list(map_embeddings(values[:16])) == ["pca", "umap"]
    assert map_embeddings(values[:, :1]) == map_embeddings(values[:1]) == {}


def test_a_umap_that_cannot_be_imported_is_named(monkeypatch, values, warned):
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))  # another package
    assert list(map_embeddings(values)) == ["pca"]
    (message,) = warned
    assert "umap-learn cannot be imported (cannot import name 'UMAP'" in message


def test_the_file_of_a_split_has_the_maps_of_its_tiles(umap, values, tmp_path):
    names = np.array([f"tile {number}" for number in range(40)])
    embeddings = Embeddings(values, np.arange(40) % 2, names)
    write_results(tmp_path, "val", MetricResult({}), embeddings, task="t", classes=None, model={})
    table = pd.read_parquet(tmp_path / "val.parquet")
    assert list(table)[-4:] == ["pca/1", "pca/2", "umap/1", "umap/2"]
    np.testing.assert_array_equal(table[["umap/1", "umap/2"]].to_numpy(), 2 * values[:, :2])
