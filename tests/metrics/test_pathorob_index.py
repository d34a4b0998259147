import dataclasses

import numpy as np
import pytest

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.pathorob_index import PublishedPathoROBIndex

PAIRS = [((0, 1), ("A", "B")), ((0, 2), ("A", "C")), ((1, 2), ("B", "C"))]


def draw(seed=0, n=180):
    """Tiles of three classes and centres, in overlapping pairs and in a list `all`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    slides = np.arange(n) // 3 % 18
    centres = np.array(list("ABC"))[slides % 3]
    values = rng.normal(size=(n, 6)) + np.eye(6)[labels] + np.eye(6)[3 + slides % 3]
    listed = []
    for tile in range(n):
        entries = [
            f"pairs/pair {number}/{tile}"
            for number, (classes, own) in enumerate(PAIRS)
            if labels[tile] in classes and centres[tile] in own
        ]
        listed.append(";".join([*entries, f"all/{'OOD' if tile % 10 == 0 else 'ID'}/{tile}"]))
    groups = {
        "centre": centres,
        "slide": np.array([f"slide {slide}" for slide in slides]),
        "listed": np.array(listed),
    }
    names = np.array([f"tile {tile}" for tile in range(n)])
    return Embeddings(values.astype(np.float32), labels, names, groups)


def count_by_hand(tiles, rows, k):
    """SO and OS among the k most similar tiles of other slides, in a plain loop."""
    values = tiles.values.astype(np.float64)
    so = os = 0
    for tile in rows:
        others = [r for r in rows if tiles.groups["slide"][r] != tiles.groups["slide"][tile]]
        cosine = [
            values[tile] @ values[r] / np.sqrt(values[tile] @ values[tile] * values[r] @ values[r])
            for r in others
        ]
        for place in np.argsort(cosine)[::-1][:k]:
            same_class = tiles.labels[others[place]] == tiles.labels[tile]
            same_centre = tiles.groups["centre"][others[place]] == tiles.groups["centre"][tile]
            so += same_class and not same_centre
            os += same_centre and not same_class
    return so, os


def compute(embeddings, **arguments):
    return PublishedPathoROBIndex(**arguments, device="cpu").compute(embeddings, embeddings)


@pytest.mark.parametrize("k", [1, 7])
def test_pairs_are_searched_apart_and_their_counts_added(k):
    tiles = draw()
    totals = np.zeros(2)
    for classes, own in PAIRS:
        rows = [
            tile
            for tile in range(len(tiles))
            if tiles.labels[tile] in classes and tiles.groups["centre"][tile] in own
        ]
        totals += count_by_hand(tiles, rows, k)
    result = compute(tiles, tiles="pairs", k=k, paired=True)
    value = result.values[f"PublishedPathoROBIndex/k={k}"]
    assert value == pytest.approx(totals[0] / totals.sum(), abs=1e-12)
    assert result.details["pathorob"]["subsets"] == 3
    ends = result.details["intervals"][f"PublishedPathoROBIndex/k={k}"]
    assert ends["low"] < value < ends["high"]
    assert value != compute(tiles, tiles="pairs", k=k).values[f"PublishedPathoROBIndex/k={k}"]


def test_tiles_out_of_domain_do_not_count():
    tiles = draw(1)
    so, os = count_by_hand(tiles, [tile for tile in range(len(tiles)) if tile % 10], 11)
    result = compute(tiles, tiles="all", k=11)
    assert result.values == {"PublishedPathoROBIndex/k=11": pytest.approx(so / (so + os))}


def test_undefined_values_have_their_reason():
    tiles = draw()
    for broken, arguments, reason in (
        (
            dataclasses.replace(tiles, groups=tiles.groups | {"centre": np.full(len(tiles), "A")}),
            {"tiles": "all", "k": 3},
            "in all, all tiles have the same centre, A",
        ),
        (
            tiles,
            {"tiles": "pairs", "k": 99, "paired": True},
            "in pair 0, a tile has only ",
        ),
        (
            dataclasses.replace(
                tiles, groups={name: tiles.groups[name] for name in ("centre", "listed")}
            ),
            {"tiles": "all", "k": 3},
            "in all, the slide of the tiles is unknown",
        ),
    ):
        result = compute(broken, **arguments)
        assert result.values == {}
        (found,) = result.undefined.values()
        assert found.startswith(reason)


def test_k_below_1_is_an_error():
    with pytest.raises(UserError, match="k is 0"):
        PublishedPathoROBIndex("camelyon", 0)
