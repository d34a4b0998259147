import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.invariance import measure_invariance


@settings(max_examples=30)
@given(st.integers(0, 999), st.floats(0.01, 3), st.floats(0, 5))
def test_the_values_equal_those_of_all_pairs(seed, noise, cone):
    generator = np.random.default_rng(seed)
    tiles = (generator.normal(size=(20, 6)) + cone).astype(np.float32)
    changed = tiles + noise * generator.normal(size=tiles.shape).astype(np.float32)
    baseline, found = measure_invariance(tiles, {"noise": changed}, device="cpu")
    pairs = cosine_similarity(tiles.astype(float))
    different = pairs[~np.eye(20, dtype=bool)]
    own = np.diag(cosine_similarity(tiles.astype(float), changed.astype(float)))
    nearer = [own[i] > max(np.delete(pairs[i], i)) for i in range(20)]
    assert baseline == pytest.approx(different.mean(), abs=1e-6)
    assert found["noise"].cosine == pytest.approx(own.mean(), abs=1e-6)
    relative = (own.mean() - different.mean()) / (1 - different.mean())
    assert found["noise"].relative == pytest.approx(relative, abs=1e-5)
    assert found["noise"].nearest == pytest.approx(np.mean(nearer))


def test_in_a_narrow_cone_a_high_cosine_is_not_taken_for_invariance():
    generator = np.random.default_rng(0)
    tiles = generator.normal(size=(50, 8)) + 20
    others = generator.normal(size=(50, 8)) + 20
    _, found = measure_invariance(tiles, {"other tiles": others, "none": tiles}, device="cpu")
    assert found["other tiles"].cosine > 0.99
    assert abs(found["other tiles"].relative) < 0.1 and found["other tiles"].nearest < 0.1
    assert found["none"].relative == pytest.approx(1) and found["none"].nearest == 1


def test_embeddings_that_cannot_be_compared_are_an_error():
    tiles = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(UserError, match=r"Got 1 tile\. Invariance needs two or more"):
        measure_invariance(tiles[:1], {}, device="cpu")
    with pytest.raises(UserError, match="All 4 tiles have the same embedding"):
        measure_invariance(np.ones((4, 3)), {}, device="cpu")
    with pytest.raises(UserError, match="4 of 4 embeddings are not finite"):
        measure_invariance(tiles, {"broken": tiles * np.nan}, device="cpu")
