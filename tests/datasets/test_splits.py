import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.datasets.splits import leave_out_rare, split_patients
from g2l_plugin.errors import UserError


@st.composite
def cohorts(draw):
    """Labels and patients of tiles; each label has six patients or more."""
    n_labels = draw(st.integers(1, 4))
    rows = []
    for label in range(n_labels):
        for patient in range(draw(st.integers(6, 12))):
            # A patient may have several labels.
            name = patient if draw(st.booleans()) else f"{label}-{patient}"
            rows += [(f"label {label}", f"patient {name}")] * draw(st.integers(1, 5))
    return np.array(rows).T


@settings(max_examples=40)
@given(cohorts(), st.integers(0, 2**31), st.randoms())
def test_no_patient_is_in_two_splits_and_every_label_in_each(cohort, seed, random):
    labels, patients = cohort
    splits = split_patients(labels, patients, seed)
    table = pd.DataFrame({"label": labels, "patient": patients, "split": splits})
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert (table.groupby("label")["split"].nunique() == 3).all()
    order = list(range(len(labels)))
    random.shuffle(order)
    assert (split_patients(labels[order], patients[order], seed) == splits[order]).all()


def test_splits_are_60_20_and_20_percent_with_labels_in_their_shares():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(200), 10)
    labels = np.repeat(rng.random(200) < 0.3, 10).astype(str)
    splits = split_patients(labels, patients)
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert (splits == split).mean() == pytest.approx(share, abs=0.03)
        assert (labels[splits == split] == "True").mean() == pytest.approx(
            (labels == "True").mean(), abs=0.03
        )


def test_another_seed_gives_other_splits():
    patients = np.repeat(np.arange(50), 2)
    labels = np.repeat(["a", "b"] * 25, 2)
    assert (split_patients(labels, patients, 0) != split_patients(labels, patients, 1)).any()


def test_only_train_and_val_can_be_drawn():
    patients = np.repeat(np.arange(50), 2)
    labels = np.repeat(["a", "b"] * 25, 2)
    splits = split_patients(labels, patients, splits=("train", "val"))
    assert set(splits) == {"train", "val"} and (splits == "val").mean() == pytest.approx(0.2)


def test_two_spellings_of_a_patient_are_in_one_split():
    labels = np.arange(100) % 2
    numbers = [str(number) for number in range(50)]
    splits = split_patients(labels, [*numbers, *(f" {number}.0" for number in numbers)])
    assert (splits[:50] == splits[50:]).all()
    table = pd.DataFrame({"label": "a", "patient": ["1", "1.0", "1 "], "path": ["x", "y", "z"]})
    assert leave_out_rare(table, 2).empty


def test_a_label_of_too_few_patients_is_named():
    labels = ["common"] * 20 + ["rare"] * 9
    patients = [str(number) for number in range(20)] + ["1", "2", "2"] * 3
    with pytest.raises(UserError, match="Only 2 of 20 patients have the label 'rare'"):
        split_patients(labels, patients)


def test_patients_move_to_a_split_that_lacks_a_label():
    # A cohort for which none of 50 draws of folds has every label in every split.
    labels = ["label 0"] * 11 + ["label 1"] * 8
    of_0 = ["0", "0", "1", "1", "0-2", "0-3", "0-4", *["0-5"] * 4]
    of_1 = ["0", "0", "1", "1", "1-2", "1-3", "1-4", "1-5"]
    patients = [f"patient {number}" for number in of_0 + of_1]
    splits = split_patients(labels, patients, 0)
    table = pd.DataFrame({"label": labels, "patient": patients, "split": splits})
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert (table.groupby("label")["split"].nunique() == 3).all()


def test_unknown_patients_are_refused():
    with pytest.raises(UserError, match="2 of 4 rows have no patient"):
        split_patients(list("abab"), ["", "p", "", "q"])


def test_rare_labels_are_left_out(caplog):
    table = pd.DataFrame({"label": list("aaabbb"), "patient": list("123112")})
    assert leave_out_rare(table)["label"].tolist() == ["a"] * 3
    assert leave_out_rare(table, 2)["label"].tolist() == list("aaabbb")
