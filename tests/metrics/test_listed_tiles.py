import numpy as np
import pytest

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.listed_tiles import in_domain, join_entries, subsets_of


def listed(*entries):
    texts = np.array([join_entries(own) for own in entries])
    names = np.array([str(n) for n in range(len(texts))])
    return Embeddings(
        np.zeros((len(texts), 2), np.float32), np.zeros(len(texts), int), names, {"listed": texts}
    )


TILES = listed(
    [("a", "ID", 12), ("b", "x/y z", 0), ("b", "other", 5)],
    [("a", "OOD", 1)],
    [("a", "ID", 3), ("b", "x/y z", 2)],
    [],
    [("b", "other", 1)],
)


def test_a_subset_has_its_tiles_in_the_order_of_the_list():
    found = {name: rows.tolist() for name, rows in subsets_of(TILES, "a").items()}
    assert list(found.items()) == [("OOD", [1]), ("ID", [2, 0])]
    found = {name: rows.tolist() for name, rows in subsets_of(TILES, "b").items()}
    assert list(found.items()) == [("x/y z", [0, 2]), ("other", [4, 0])]


def test_tiles_in_domain_are_listed_once_in_the_order_of_the_list():
    assert in_domain(TILES, "a").tolist() == [2, 0]
    assert in_domain(TILES, "b").tolist() == [0, 4, 2]


@pytest.mark.parametrize("groups", [{}, TILES.groups])
def test_a_list_without_tiles_says_how_to_get_them(groups):
    tiles = Embeddings(TILES.values, TILES.labels, TILES.names, groups)
    with pytest.raises(UserError, match=r"list c: prepare .*--metadata c.csv"):
        in_domain(tiles, "c")


def test_a_list_of_only_out_of_domain_tiles_is_told():
    with pytest.raises(UserError, match="list a are out of domain"):
        in_domain(listed([("a", "OOD", 0)]), "a")
