import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from g2l_plugin.errors import UserError
from g2l_plugin.metrics import neighbours
from g2l_plugin.metrics.neighbours import choose_device, computing_on, nearest


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_scikit_learn(metric, monkeypatch):
    monkeypatch.setattr(neighbours, "_CELLS", 700)  # several blocks of queries
    generator = np.random.default_rng(0)
    references = generator.normal(3, 1, (300, 16)).astype(np.float32)
    queries = generator.normal(3, 1, (40, 16)).astype(np.float32)
    indices, values = nearest(queries, references, 7, metric)
    theirs = NearestNeighbors(n_neighbors=7, metric=metric).fit(references.astype(float))
    distances, expected = theirs.kneighbors(queries.astype(float))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(1 - values if metric == "cosine" else values, distances, atol=1e-5)


def test_a_run_on_the_cpu_takes_nothing_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    with computing_on(torch.device("cpu")):
        assert choose_device("auto") == torch.device("cpu")
        assert choose_device("cuda") == torch.device("cuda")  # which somebody asked for
    with computing_on(torch.device("cuda", 1)):
        assert choose_device("auto") == torch.device("cuda", 1)
    with computing_on(torch.device("mps")):  # which lacks doubles
        assert choose_device("auto") == torch.device("cuda")


def test_euclidean_neighbours_far_from_the_origin_are_still_distinguished():
    references = (np.array([[0.0], [1.0], [3.0]]) + 20_000).astype(np.float32)
    indices, distances = nearest(references + 0.25, references, 2, "euclidean")
    assert indices.tolist() == [[0, 1], [1, 0], [2, 1]]
    np.testing.assert_allclose(distances, [[0.25, 0.75], [0.25, 1.25], [0.25, 2.25]])


@settings(max_examples=50)
@given(st.data())
def test_among_equally_near_references_the_first_win(data):
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
    k = data.draw(st.integers(1, len(kinds)))
    references = np.eye(4, dtype=np.float32)[kinds]
    query = np.array([[4, 3, 2, 1]], np.float32)
    indices, _ = nearest(query, references, k)
    assert indices[0].tolist() == sorted(range(len(kinds)), key=lambda i: (kinds[i], i))[:k]


def test_references_of_the_same_group_are_skipped():
    embeddings = np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1], [0.1, 1]], np.float32)
    slides = np.array(["a", "a", "b", "b", "c"])
    indices, values = nearest(embeddings, embeddings, 2, exclude=(slides, slides))
    assert indices.tolist() == [[2, 4], [2, 4], [1, 0], [4, 1], [3, 2]]
    assert np.isfinite(values).all()


def test_groups_of_queries_and_references_are_matched_by_name():
    one = np.array([[1, 0]], np.float32)
    references = np.array([[1, 0], [0, 1]], np.float32)
    exclude = (np.array(["slide 10"]), np.array(["slide 10", "slide 2"]))
    assert nearest(one, references, 1, exclude=exclude)[0].tolist() == [[1]]


def test_more_neighbours_than_references_are_an_error():
    embeddings = np.eye(4, dtype=np.float32)
    assert nearest(embeddings, embeddings, 4)[0].shape == (4, 4)
    with pytest.raises(UserError, match="k is 5, but there are 4 embeddings to choose"):
        nearest(embeddings, embeddings, 5)
    with pytest.raises(UserError, match="k is 0"):
        nearest(embeddings, embeddings, 0)
    slides = np.array(["a", "a", "a", "b"])
    with pytest.raises(
        UserError, match="k is 2, but there are 1 embeddings outside a tile's own group"
    ):
        nearest(embeddings, embeddings, 2, exclude=(slides, slides))


def test_embeddings_that_are_zero_or_not_finite_are_an_error():
    embeddings = np.eye(4, dtype=np.float32)
    empty = embeddings * (np.arange(4) > 0)[:, None].astype(np.float32)
    with pytest.raises(UserError, match="1 of 4 embeddings are all zeros"):
        nearest(empty, embeddings, 1)
    with pytest.raises(UserError, match="1 of 4 embeddings are all zeros"):
        nearest(embeddings, empty, 1)
    assert nearest(empty, empty, 1, "euclidean")[0].tolist() == [[0], [1], [2], [3]]
    with pytest.raises(UserError, match="4 of 4 embeddings are not finite"):
        nearest(embeddings, embeddings * np.nan, 1)
    with pytest.raises(UserError, match="Unknown distance 'manhattan'"):
        nearest(embeddings, embeddings, 1, "manhattan")


def test_the_matmul_precision_of_a_trainer_is_overridden_and_restored():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        generator = np.random.default_rng(0)
        embeddings = generator.normal(size=(200, 64)).astype(np.float32)
        _, values = nearest(embeddings, embeddings, 1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(values, 1, atol=1e-6)
