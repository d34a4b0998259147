import math
import statistics

import pandas as pd
import pytest

from g2l_plugin.report.sessions import read_sessions
from g2l_plugin.report.tables import build_tables
from g2l_plugin.report.values import pool_values, published_values


def values_of(path):
    return pool_values(read_sessions([str(path)]))


def tables_of(path):
    return {table.family.key: table for table in build_tables(values_of(path))}


def cells_of(table):
    return {row.model: row.cells for row in table.rows if not row.published}


def test_runs_and_sessions_are_pooled_into_mean_and_spread(write_session, tmp_path):
    write_session("1", head={"MulticlassAccuracy": [0.80, 0.84]})
    write_session("2", head={"MulticlassAccuracy": [0.85]})
    (row,) = values_of(tmp_path).to_dict("records")
    values = [0.80, 0.84, 0.85]
    assert row["mean"] == pytest.approx(sum(values) / 3)
    assert row["stdev"] == pytest.approx(statistics.stdev(values))
    assert row["n_runs"] == 3
    (cell,) = cells_of(tables_of(tmp_path)["head"])["a"]
    assert (cell.text, cell.spread) == ("0.830", f"± {statistics.stdev(values):.3f}")


def test_a_metric_that_was_computed_once_keeps_its_interval(write_session, tmp_path):
    interval = {"KNNAccuracy": {"low": 0.85, "high": 0.95}}
    runs = {"MulticlassAccuracy": [0.8, 0.9, 0.7]}  # eva repeats KNNAccuracy in each of them
    for name in "12":
        write_session(name, head=runs, values={"KNNAccuracy": 0.9}, intervals=interval)
    values = values_of(tmp_path).set_index("metric")
    assert values.loc["KNNAccuracy", "n_runs"] == 2
    assert values.loc["KNNAccuracy", "low"] == 0.85
    (cell,) = cells_of(tables_of(tmp_path)["knn"])["a"]
    assert (cell.text, cell.spread) == ("0.900", "0.850 to 0.950")
    other = write_session("3", head=runs, values={"KNNAccuracy": 0.8}, intervals=interval)
    assert other.is_dir()
    (cell,) = cells_of(tables_of(tmp_path)["knn"])["a"]  # different values have a spread instead
    assert cell.spread == f"± {statistics.stdev([0.9, 0.9, 0.8]):.3f}"


def test_one_run_has_no_spread(write_session, tmp_path):
    write_session("1", head={"MulticlassAccuracy": [0.8]})
    (cell,) = cells_of(tables_of(tmp_path)["head"])["a"]
    assert cell.spread == ""


def test_best_and_second_best_are_marked_in_each_column(write_session, tmp_path):
    for model, bach, bracs in (("a", 0.9, 0.5), ("b", 0.8, 0.7), ("c", 0.9, 0.6), ("d", 0.7, 0.1)):
        write_session(f"{model}1", model=model, values={"KNNAccuracy": bach})
        write_session(f"{model}2", model=model, task="bracs", values={"KNNAccuracy": bracs})
    cells = cells_of(tables_of(tmp_path)["knn"])
    assert [cells[model][0].rank for model in "abcd"] == [
        1,
        2,
        1,
        None,
    ]  # equal values share a rank
    assert [cells[model][1].rank for model in "abcd"] == [None, 1, 2, None]


def test_a_single_model_is_not_ranked(write_session, tmp_path):
    write_session("1", values={"KNNAccuracy": 0.9})
    assert cells_of(tables_of(tmp_path)["knn"])["a"][0].rank is None


def test_a_teacher_compared_with_itself_is_not_ranked(write_session, tmp_path):
    for model, cka in (("teacher", 1.0), ("start", 0.5), ("student", 0.9)):
        values = {"LinearCKA": (1 + cka) / 2, "LinearCKAUnbiased": cka}
        write_session(model, model=model, values=values)
    cells = cells_of(tables_of(tmp_path)["cka"])
    ranks = {model: own[0].rank for model, own in cells.items()}
    assert ranks == {"teacher": None, "student": 1, "start": 2}
    assert sorted(own[0].text for own in cells.values()) == ["0.500", "0.900", "1.000"]


def test_biased_cka_is_shown_only_next_to_a_published_one(write_session, tmp_path):
    for task in ("bach", "breakhis_100X"):
        write_session(task, task=task, values={"LinearCKA": 0.9, "LinearCKAUnbiased": 0.1})
    assert set(tables_of(tmp_path)) == {"cka"}
    values = values_of(tmp_path)
    shown = build_tables(pd.concat([values, published_values(values)], ignore_index=True))
    cka, biased = shown
    assert [column.task for column in cka.columns] == ["BACH", "BreakHis 100x"]
    assert [column.task for column in biased.columns] == ["BreakHis 100x"]
    assert biased.title == "Biased CKA with the teacher"
    assert [row.published for row in biased.rows] == [False, True, True]


def test_an_undefined_value_is_shown_with_its_reason_and_never_as_0(write_session, tmp_path):
    write_session("a", undefined={"RobustnessIndex/k=5": "all tiles are of one centre, x"})
    write_session("b", model="b", values={"RobustnessIndex/k=5": 1.2})
    write_session("c", model="c", task="bracs", values={"RobustnessIndex/k=5": 1.1})
    table = tables_of(tmp_path)["robustness"]
    cells = cells_of(table)
    assert (cells["a"][0].text, cells["a"][0].rank) == ("undefined", None)
    assert table.notes[cells["a"][0].note] == "Undefined: all tiles are of one centre, x."
    assert cells["a"][1].text == "\N{EN DASH}"  # not run
    row = values_of(tmp_path).query("model == 'a'").iloc[0]
    assert math.isnan(row["mean"]) and row["undefined"] == "all tiles are of one centre, x"


def test_a_run_without_a_number_makes_the_value_undefined(write_session, tmp_path):
    write_session("a", head={"MulticlassAccuracy": [0.9, math.nan]})
    table = tables_of(tmp_path)["head"]
    (cell,) = cells_of(table)["a"]
    assert cell.text == "undefined"
    assert table.notes[cell.note] == "Undefined: 1 of 2 runs gave no number."


def test_the_test_split_is_preferred_and_the_column_names_it(write_session, tmp_path):
    write_session("a/1", split="val", values={"KNNAccuracy": 0.99})
    write_session("a/2", split="test", values={"KNNAccuracy": 0.8})
    write_session("b", model="b", split="val", values={"KNNAccuracy": 0.9})
    table = tables_of(tmp_path)["knn"]
    assert [column.split for column in table.columns] == ["test"]
    cells = cells_of(table)
    assert cells["a"][0].text == "0.800"
    assert table.notes[cells["b"][0].note] == "Evaluated on val only."
    assert len(values_of(tmp_path)) == 3


def test_of_several_k_the_table_shows_the_largest(write_session, tmp_path):
    values = {f"RobustnessIndex/k={k}": 1 + k / 100 for k in (3, 5, 10, 20)}
    values |= {f"Top{k}Accuracy/{kind}": k / 10 for k in (1, 10) for kind in ("scanner", "all")}
    write_session("a", values=values)
    tables = tables_of(tmp_path)
    assert tables["robustness"].title == "Robustness index (de Jong et al.), k=20"
    assert cells_of(tables["robustness"])["a"][0].text == "1.200"
    retrieval = [column.detail for column in tables["retrieval"].columns]
    assert retrieval == ["scanner, top 10", "all, top 10"]


def test_of_several_k_the_table_shows_none_that_is_undefined_for_all_models(
    write_session, tmp_path
):
    names = [f"FewShotBalancedAccuracy/k={k}" for k in (1, 5, 50)]
    for model in "ab":
        values = {names[0]: 0.4, names[1]: 0.7}
        undefined = {names[2]: "of class 1, the training split has only 20"}
        write_session(model, model=model, values=values, undefined=undefined)
    table = tables_of(tmp_path)["few_shot"]
    assert table.title == "Few-shot balanced accuracy, k=5"
    assert [cells_of(table)[model][0].text for model in "ab"] == ["0.700"] * 2
    assert set(values_of(tmp_path)["metric"]) >= set(names)


def test_the_smallest_calibration_error_is_the_best(write_session, tmp_path):
    for model, error in (("a", 0.2), ("b", 0.05), ("c", 0.1)):
        write_session(model, model=model, values={"LogisticECE": error, "LogisticBrier": error})
    tables = tables_of(tmp_path)
    ranks = {model: cells[0].rank for model, cells in cells_of(tables["calibration"]).items()}
    assert ranks == {"b": 1, "c": 2, "a": None}
    assert list(tables) == ["calibration"]  # the Brier score is in report.csv only


def test_the_monitored_metric_is_the_one_of_the_head(write_session, tmp_path, config):
    monitored = config(monitor="val/MulticlassF1Score")
    runs = {"MulticlassAccuracy": [0.8], "MulticlassF1Score": [0.7], "AverageLoss": [0.1]}
    write_session("a", head=runs, config=monitored)
    (column,) = tables_of(tmp_path)["head"].columns
    assert column.metric == "MulticlassF1Score"


def test_an_unknown_metric_has_its_own_table(write_session, tmp_path):
    write_session("a", values={"Silhouette": 0.3})
    assert tables_of(tmp_path)["Silhouette"].title == "Silhouette"


def test_published_values_are_found_for_the_tasks_and_metrics_of_a_report(write_session, tmp_path):
    head = {"MulticlassAccuracy": [0.8]}
    write_session("1", split="val", head=head, values={"KNNAccuracy": 0.9})
    write_session("2", task="idc", values={"KNNAccuracy": 0.9, "LogisticAUROC": 0.97})
    write_session("3", task="breakhis_100X", values={"LinearCKA": 0.9})
    write_session("4", task="tiger", values={"RobustnessIndex/k=20": 1.9})
    write_session("5", task="hest_prad", split="val", values={"GenePearson/pca_ridge": 0.3})
    write_session("6", task="hest_idc", split="val", values={"GenePearson/ridge": 0.3})
    found = published_values(values_of(tmp_path))
    assert found["published"].all() and found["source"].str.len().all()

    def value(model, task, metric):
        (mean,) = found.query("model == @model and task == @task and metric == @metric")["mean"]
        return mean

    assert value("H-optimus-0", "BACH", "MulticlassAccuracy") == 0.759
    assert value("H-optimus-0", "IDC", "KNNAccuracy") == 0.9141
    assert value("Hibou-L", "IDC", "LogisticAUROC") == 0.9488
    assert value("G2L (the paper's)", "BreakHis 100x", "LinearCKA") == 0.9686
    assert value("UNI2-h", "TIGER", "RobustnessIndex/k=20") == 1.8548
    assert value("H-optimus-0", "HEST PRAD", "GenePearson/pca_ridge") == 0.3848
    assert found.query("task == 'BACH' and metric == 'KNNAccuracy'").empty
    # The leaderboard's protocol is another.
    assert found.query("task == 'HEST IDC'").empty


def test_published_values_match_the_split(write_session, tmp_path):
    head = {"BinaryBalancedAccuracy": [0.9]}
    write_session("1", task="patch_camelyon", split="val", head=head)
    write_session("2", task="patch_camelyon", split="test", head=head)
    found = published_values(values_of(tmp_path)).query("model == 'Virchow2'")
    assert dict(zip(found["split"], found["mean"], strict=True)) == {"val": 0.933, "test": 0.938}


def test_published_rows_are_marked_and_never_ranked(write_session, tmp_path):
    for model, accuracy in (("a", 0.1), ("b", 0.2)):
        write_session(model, model=model, split="val", head={"MulticlassAccuracy": [accuracy]})
    values = values_of(tmp_path)
    (table,) = build_tables(pd.concat([values, published_values(values)], ignore_index=True))
    assert [row.cells[0].rank for row in table.rows if not row.published] == [2, 1]
    published = [row for row in table.rows if row.published]
    assert len(published) == 15
    assert all(row.cells[0].rank is None for row in published)
    assert all("eva's leaderboard" in table.notes[row.note] for row in published)


def test_sessions_with_and_without_a_count_are_not_pooled_into_one(write_session, tmp_path):
    shared = {"n_patients": 8, "n_shared": 2, "values": {"KNNAccuracy": 0.6}, "by_name": True}
    runs = {"values": {"KNNAccuracy": 0.9}, "training_patients": {"evaluated": shared}}
    write_session("1", **runs)
    other = runs["training_patients"]["evaluated"] | {"values": {"KNNAccuracy": 0.7}}
    write_session("2", **runs | {"training_patients": {"evaluated": other}})
    (row,) = values_of(tmp_path).to_dict("records")
    assert (row["n_trained_on"], row["mean_without"]) == (2, pytest.approx(0.65))
    assert row["trained_on"].startswith("2 of 8 patients have the names of patients in")
    write_session("3", values={"KNNAccuracy": 0.9})
    (row,) = values_of(tmp_path).to_dict("records")
    assert math.isnan(row["n_trained_on"]) and math.isnan(row["mean_without"])
