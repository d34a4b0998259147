import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.slides.split import tiles_of_split


@pytest.mark.parametrize(
    ("n_patients", "held_out"), [(2, 1), (7, 1), (8, 2), (29, 2), (30, 3), (1000, 100)]
)
def test_a_tenth_of_the_patients_at_most_is_held_out(n_patients, held_out):
    patients = np.array([f"p{number}" for number in range(n_patients)])
    val = tiles_of_split("val", patients, np.ones(n_patients, int), 10**6, 10**6, seed=0)
    assert len(val) == held_out


@given(
    groups=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), min_size=1),
    n_val_tiles=st.integers(0, 20),
    n_val_patients=st.integers(0, 4),
    seed=st.integers(0, 5),
)
def test_no_patient_of_several_is_in_both_splits(groups, n_val_tiles, n_val_patients, seed):
    patients, sizes = (np.array(column) for column in zip(*groups, strict=True))
    train, val = (
        tiles_of_split(split, patients, sizes, n_val_tiles, n_val_patients, seed)
        for split in ("train", "val")
    )
    of_tile = np.repeat(patients, sizes)
    assert not set(train) & set(val)
    assert len(val) <= n_val_tiles
    if len(set(of_tile)) > 1:
        assert not set(of_tile[train]) & set(of_tile[val])
        assert len(set(of_tile[val])) <= n_val_patients
        if not n_val_tiles or not n_val_patients:
            assert len(train) == sizes.sum()


def test_names_of_patients_and_their_ranks_give_the_same_split():
    sizes = np.full(40, 3)
    names = np.array([f"patient {number % 13:02}" for number in range(40)])
    ranks = np.unique(names, return_inverse=True)[1]
    by_name, by_rank = (tiles_of_split("val", p, sizes, 9, 3, seed=4) for p in (names, ranks))
    assert by_name.tolist() == by_rank.tolist()
