"""Train, val and test splits by patient, for tasks without official ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from loguru import logger
from sklearn.model_selection import StratifiedGroupKFold

from g2l_plugin.datasets.manifest_table import SPLITS, sort_labels
from g2l_plugin.errors import UserError
from g2l_plugin.slides.patients import clean_patient

_N_FOLDS = 5
_MAX_DRAWS = 50
"""Number of seeds to try until every split has every label."""


def split_patients(
    labels: Sequence[str] | np.ndarray | pd.Series,
    patients: Sequence[str] | np.ndarray | pd.Series,
    seed: int = 0,
    splits: Sequence[str] = SPLITS,
) -> np.ndarray:
    """Draws splits by patient, stratified by label.

    scikit-learn's StratifiedGroupKFold makes five folds. Each split after the first gets one fold
    and the first split gets the rest: 60 % train, 20 % val and 20 % test. The result does not
    depend on the order of the rows.

    Args:
        labels: Label of each tile or slide, (N,).
        patients: Patient of each, (N,).
        seed: Seed of the draw.
        splits: Names of the splits.

    Returns:
        Split of each row, str (N,).

    Raises:
        UserError: A patient is unknown, or a label has too few patients to be in every split.
    """
    labels = np.asarray(labels, str)
    patients = np.array([clean_patient(str(patient)) for patient in patients], str)
    if (patients == "").any():
        raise UserError(
            f"{(patients == '').sum():,} of {len(patients):,} rows have no patient. Give every row "
            "its patient, so that no patient is in two splits."
        )
    # Sorted, so that the order of the rows does not change the draw.
    order = np.lexsort([labels, patients])
    labels, patients = labels[order], patients[order]
    per_label = pd.Series(patients).groupby(labels).nunique()
    for draw in range(_MAX_DRAWS if per_label.min() >= len(splits) else 0):
        folds = _draw_folds(labels, patients, seed + draw * 100_003)
        drawn = np.asarray(splits)[np.where(folds < len(splits) - 1, folds + 1, 0)]
        drawn = _move_patients(labels, patients, drawn, splits)
        if (_count_patients(labels, patients, drawn, splits) > 0).all(axis=None):
            result = np.empty_like(drawn)
            result[order] = drawn
            return result
    raise UserError(
        f"Only {per_label.min()} of {len(np.unique(patients))} patients have the label "
        f"{per_label.idxmin()!r}, too few for the splits {', '.join(splits)}. Check that the "
        "download is complete, or leave the label out."
    )


def leave_out_rare(table: pd.DataFrame, n_splits: int = len(SPLITS)) -> pd.DataFrame:
    """Removes the tiles of labels with fewer patients than splits, and logs a warning.

    Args:
        table: A table with the columns `label` and `patient`.
        n_splits: Number of splits to draw later.

    Returns:
        The remaining rows.
    """
    per_label = table["patient"].map(clean_patient).groupby(table["label"]).nunique()
    for label in sort_labels(per_label.index[per_label < n_splits]):
        logger.warning(
            f"Only {per_label[label]} patients have tiles of {label!r}, too few for {n_splits} "
            f"splits: its {(table['label'] == label).sum():,} tiles are left out."
        )
    return table[table["label"].map(per_label) >= n_splits].reset_index(drop=True)


def _draw_folds(labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each row, int (N,)."""
    folds = np.empty(len(labels), int)
    n_folds = min(_N_FOLDS, int(pd.Series(labels).value_counts().max()))
    names, of_row = np.unique(patients, return_inverse=True)
    # Shuffled here: scikit-learn before 1.8, which is all there is for Python 3.10, shuffles the
    # patients' labels without the patients, so that folds are not stratified.
    order = np.random.RandomState(seed % 2**32).permutation(len(names))
    shuffled = np.argsort(order)[of_row]
    splitter = StratifiedGroupKFold(n_folds)
    with warnings.catch_warnings():
        # scikit-learn warns of labels with fewer rows than folds; the caller checks the splits.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, held_out) in enumerate(splitter.split(labels, labels, shuffled)):
            folds[held_out] = number
    return folds


def _count_patients(
    labels: np.ndarray, patients: np.ndarray, drawn: np.ndarray, splits: Sequence[str]
) -> pd.DataFrame:
    """Patients of each label (rows) in each split (columns)."""
    rows = pd.DataFrame({"label": labels, "patient": patients, "split": drawn}).drop_duplicates()
    return pd.crosstab(rows["label"], rows["split"]).reindex(columns=list(splits), fill_value=0)


def _move_patients(
    labels: np.ndarray, patients: np.ndarray, drawn: np.ndarray, splits: Sequence[str]
) -> np.ndarray:
    """Moves patients to splits that lack a label, as long as no other split loses one by it.

    The folds balance rows, so in a small cohort a fold may have none of a label.
    """
    drawn = drawn.copy()
    while True:
        counts = _count_patients(labels, patients, drawn, splits)
        movable = []
        for row, column in np.argwhere(counts.to_numpy() == 0):
            label, split = counts.index[row], counts.columns[column]
            for patient in np.unique(patients[labels == label]):
                of_patient = patients == patient
                left = counts.loc[np.unique(labels[of_patient]), drawn[of_patient][0]]
                if left.min() > 1:
                    movable.append((-left[label], of_patient.sum(), patient, split))
        if not movable:
            return drawn
        *_, patient, split = min(movable)
        drawn[patients == patient] = split
