import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from g2l_plugin.errors import UserError
from g2l_plugin.report.comparison import compare_models
from g2l_plugin.report.sessions import read_sessions
from g2l_plugin.report.tables import build_tables
from g2l_plugin.report.values import pool_values


def compare(path, reference=None):
    sessions = read_sessions([str(path)])
    return compare_models(build_tables(pool_values(sessions)), sessions, reference)


def accuracy_of(table):
    scores = table[[name for name in table if name.startswith("knn/")]].to_numpy()
    return float((scores.argmax(1) == table["label"]).mean())


def test_a_better_model_differs_and_one_that_is_as_good_does_not(
    write_session, predictions, tmp_path
):
    tables = {
        "good": predictions(0.95, seed=1),
        "as good": predictions(0.95, seed=2),
        "bad": predictions(0.6, seed=3),
    }
    for model, table in tables.items():
        values = {"KNNAccuracy": accuracy_of(table)}
        write_session(model, model=model, values=values, predictions=table)
    found = {difference.model: difference for difference in compare(tmp_path, "good")}
    bad, same = found["bad"], found["as good"]
    assert bad.interval.value == pytest.approx(
        accuracy_of(tables["bad"]) - accuracy_of(tables["good"])
    )
    assert bad.interval.low < bad.interval.value < bad.interval.high < 0
    assert bad.conclusion == "The interval excludes 0: bad is worse."
    assert same.interval.low < 0 < same.interval.high and not same.is_significant
    assert same.conclusion == "The interval includes 0: no difference is shown."
    assert (bad.n_tiles, bad.n_units, bad.unit) == (400, 40, "patient")
    flipped = {difference.model: difference for difference in compare(tmp_path, "bad")}
    assert flipped["good"].interval.low == pytest.approx(-bad.interval.high)
    assert flipped["good"].conclusion == "The interval excludes 0: good is better."


def test_without_a_reference_models_are_compared_with_the_best_of_each_task(
    write_session, predictions, tmp_path
):
    for model, accuracy in (("a", 0.6), ("b", 0.9), ("c", 0.7)):
        table = predictions(accuracy)
        values = {"KNNAccuracy": accuracy_of(table)}
        write_session(model, model=model, values=values, predictions=table)
    assert {(d.model, d.reference) for d in compare(tmp_path)} == {("a", "b"), ("c", "b")}


def test_the_auroc_of_a_probe_and_its_interval_agree_with_scikit_learn(
    write_session, predictions, tmp_path
):
    tables, areas = {}, {}
    for model, accuracy in (("a", 0.9), ("b", 0.7)):
        tables[model] = predictions(accuracy, n_classes=3)
        scores = tables[model][[f"logistic/{number}" for number in range(3)]]
        areas[model] = roc_auc_score(tables[model]["label"], scores, multi_class="ovr")
        values = {"LogisticAUROC": areas[model]}
        write_session(model, model=model, values=values, predictions=tables[model])
    (difference,) = compare(tmp_path)
    assert difference.interval.value == pytest.approx(areas["b"] - areas["a"], abs=1e-6)
    # The interval from a loop over drawn patients.
    by_patient = tables["a"].groupby("patient", sort=False).indices
    patients, generator = list(by_patient), np.random.default_rng(5)
    draws = []
    for _ in range(150):
        drawn = generator.choice(len(patients), len(patients))
        rows = np.concatenate([by_patient[patients[number]] for number in drawn])
        a, b = (
            roc_auc_score(
                table["label"].iloc[rows],
                table[[f"logistic/{number}" for number in range(3)]].iloc[rows],
                multi_class="ovr",
            )
            for table in tables.values()
        )
        draws.append(b - a)
    assert difference.interval.low == pytest.approx(np.quantile(draws, 0.025), abs=0.012)
    assert difference.interval.high == pytest.approx(np.quantile(draws, 0.975), abs=0.012)


def test_tiles_are_matched_by_name_in_any_order(write_session, predictions, tmp_path):
    table = predictions(0.8)
    for model, rows in (("a", table), ("b", table.sample(frac=1, random_state=0))):
        write_session(model, model=model, values={"KNNAccuracy": 0.8}, predictions=rows)
    (difference,) = compare(tmp_path)
    assert (difference.interval.value, difference.interval.low) == (0, 0)
    assert not difference.is_significant


def test_units_are_patients_or_else_slides_or_else_tiles(write_session, predictions, tmp_path):
    table = predictions(0.8).rename(columns={"patient": "slide"})
    for model in "ab":
        write_session(model, model=model, values={"KNNAccuracy": 0.8}, predictions=table)
    assert compare(tmp_path)[0].unit == "slide"
    table = table.drop(columns="slide")
    for model in "ab":
        write_session(model, model=model, values={"KNNAccuracy": 0.8}, predictions=table)
    assert (compare(tmp_path)[0].unit, compare(tmp_path)[0].n_units) == ("tile", 400)


def test_models_that_cannot_be_compared_give_the_reason(write_session, predictions, tmp_path):
    table = predictions(0.8)
    others = {
        "fewer": table.iloc[:-3],
        "relabelled": table.assign(label=1 - table["label"]),
        "none": None,
    }
    write_session("good", model="good", values={"KNNAccuracy": 0.9}, predictions=table)
    for model, own in others.items():
        write_session(model, model=model, values={"KNNAccuracy": 0.8}, predictions=own)
    found = {difference.model: difference.conclusion for difference in compare(tmp_path)}
    assert found["fewer"] == (
        "Not compared: they were evaluated on different tiles, 0 only by fewer and 3 only by good."
    )
    assert found["relabelled"] == "Not compared: the same tiles have different labels."
    assert found["none"] == "Not compared: none has no predictions."
    alone = table.assign(patient="p1")
    for model in ("one", "two"):
        write_session(
            model, model=model, task="idc", values={"KNNAccuracy": 0.8}, predictions=alone
        )
    (difference,) = [found for found in compare(tmp_path) if found.column.task == "IDC"]
    assert difference.conclusion == "Not compared: all tiles are of one patient."


def test_a_missing_reference_is_an_error(write_session, tmp_path):
    write_session("a", values={"KNNAccuracy": 0.8})
    with pytest.raises(UserError, match=r"No result is of --reference b\. Name one of: a\."):
        compare(tmp_path, "b")


def test_a_task_without_the_reference_gives_the_reason(write_session, predictions, tmp_path):
    table = predictions(0.8)
    for model, task in (("a", "bach"), ("a", "idc"), ("b", "bach")):
        write_session(
            f"{model}_{task}",
            model=model,
            task=task,
            values={"KNNAccuracy": 0.8},
            predictions=table,
        )
    found = {difference.column.task: difference for difference in compare(tmp_path, "b")}
    assert found["BACH"].interval is not None
    assert found["IDC"].conclusion == "Not compared: b has no value for this task."


def test_a_damaged_table_is_an_error_that_names_it(write_session, predictions, tmp_path):
    for model in "ab":
        folder = write_session(
            model, model=model, values={"KNNAccuracy": 0.8}, predictions=predictions(0.8)
        )
    (folder / "run_0" / "metrics" / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"test.parquet is damaged"):
        compare(tmp_path)


def test_without_scores_of_one_classifier_the_other_is_compared(
    write_session, predictions, tmp_path
):
    table = predictions(0.8)
    table = table[[name for name in table if not name.startswith("logistic/")]]
    assert isinstance(table, pd.DataFrame)
    for model in "ab":
        values = {"KNNAccuracy": 0.8, "LogisticAUROC": 0.9}
        write_session(model, model=model, values=values, predictions=table)
    knn, logistic = compare(tmp_path)
    assert knn.interval is not None and logistic.problem == "b has no predictions"
