import json

import pytest

from g2l_plugin.errors import UserError
from g2l_plugin.report.sessions import read_sessions


def read(*paths):
    return read_sessions([str(path) for path in paths])


def test_sessions_are_found_in_a_folder_a_parent_and_by_their_file(write_session, tmp_path):
    one = write_session("one/1", values={"KNNAccuracy": 0.9})
    two = write_session("two/1", model="b", values={"KNNAccuracy": 0.8})
    assert [session.model for session in read(tmp_path)] == ["a", "b"]
    assert [session.model for session in read(two, one)] == ["b", "a"]
    assert read(one / "results.json")[0].folder == one
    assert len(read(one, tmp_path, one)) == 2  # each once


def test_embedding_metrics_name_model_task_and_what_is_undefined(write_session, predictions):
    folder = write_session(
        "one",
        task="breakhis_40X",
        values={"KNNAccuracy": 0.9},
        undefined={"RobustnessIndex/k=5": "one centre"},
        intervals={"KNNAccuracy": {"low": 0.8, "high": 0.95}, "X": {"low": None, "high": None}},
        predictions=predictions(0.9),
        facts={"sha256": "12ab", "parameters": 5},
        classes=["benign", "malignant"],
    )
    (session,) = read(folder)
    assert (session.model, session.task) == ("a", "BreakHis 40x")
    assert session.classes == ("benign", "malignant")
    assert session.facts["parameters"] == 5
    metrics = session.split_metrics["test"]
    assert metrics.undefined == {"RobustnessIndex/k=5": "one centre"}
    assert metrics.intervals == {"KNNAccuracy": (0.8, 0.95)}
    assert metrics.predictions == folder / "run_0" / "metrics" / "test.parquet"


def test_the_config_names_model_and_task_of_plain_results_of_eva(write_session, config):
    write_session(
        "plain", head={"MulticlassAccuracy": [0.8, 0.9]}, config=config(), embedding_metrics=False
    )
    student = config(model_name="g2l/student", kwargs="{source: local-dir:student}")
    write_session("student", head={"X": [1.0]}, config=student, embedding_metrics=False)
    plain, student = read(write_session("plain", embedding_metrics=False, head={"X": [1.0]}).parent)
    assert (plain.model, plain.task, plain.monitor) == (
        "pathology/owkin_phikon",
        "BACH",
        "MulticlassAccuracy",
    )
    assert student.model == "local-dir:student"


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({"dataset": "eva.vision.datasets.MHIST"}, "MHIST"),
        ({"dataset": "eva.vision.datasets.BreakHis"}, "BreakHis 40x"),
        (
            {
                "dataset": "eva.vision.datasets.BreakHis",
                "dataset_args": {"magnifications": ["40X", "100X"]},
            },
            "breakhis_40X_100X",
        ),
        ({"dataset": "g2l_plugin.ManifestTiles", "root": "logs/m/offline/idc"}, "IDC"),
    ],
)
def test_the_dataset_names_the_task(write_session, config, changes, task):
    folder = write_session(
        "s", head={"X": [1.0]}, config=config(**changes), embedding_metrics=False
    )
    assert read(folder)[0].task == task


def test_a_monitored_metric_of_which_lower_is_better_is_ignored(write_session, config):
    lower = config(monitor="val/AverageLoss", mode="min")
    folder = write_session("s", head={"AverageLoss": [0.1]}, config=lower, embedding_metrics=False)
    assert read(folder)[0].monitor is None


def test_different_spellings_are_the_same_task(write_session, tmp_path):
    write_session("1", task="My task", head={"X": [1.0]})
    write_session("2", task="my_task", model="b", head={"X": [1.0]})
    assert {session.task for session in read(tmp_path)} == {"My task"}


def test_a_label_names_the_model(write_session, tmp_path):
    folder = write_session("s=1", head={"X": [1.0]})  # an existing path with a = is not a label
    assert read(folder)[0].model == "a"
    assert read(f"teacher={folder}")[0].model == "teacher"


def test_sessions_that_trained_an_encoder_are_left_out(write_session, tmp_path):
    training = {"model": {"class_path": "g2l_plugin.DistillationModule"}, "data": {}}
    run = write_session("training", head={"cka": [0.9]}, config=training, embedding_metrics=False)
    student = write_session("training/run_0/student", head={"cka": [0.9]}, embedding_metrics=False)
    (student / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"No evaluation is in .*: expected results.json"):
        read(run)
    write_session("training/run_0/evaluation/student_after", head={"X": [1.0]}, model="after")
    assert [session.model for session in read(tmp_path)] == ["after"]


def test_results_that_cannot_be_read_are_errors_that_name_the_file(write_session, tmp_path, config):
    with pytest.raises(UserError, match=r"missing does not exist"):
        read(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"No results.json is in .*empty"):
        read(tmp_path / "empty")
    folder = write_session("s", head={"X": [1.0]}, config=config(), embedding_metrics=False)
    (folder / "results.json").write_text('{"metrics": ')
    with pytest.raises(UserError, match=r"s.results.json is damaged"):
        read(folder)
    (folder / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results.json does not hold results of eva"):
        read(folder)
    (folder / "results.json").write_text(json.dumps({"metrics": {"val": [], "test": []}}))
    with pytest.raises(UserError, match=r"results.json holds no metrics"):
        read(folder)
    folder = write_session("t", head={"X": [1.0]})
    (folder / "run_0" / "metrics" / "test.json").write_text("{}")
    with pytest.raises(UserError, match=r"test.json is not a file of EmbeddingMetrics"):
        read(folder)
    folder = write_session("u", head={"X": [1.0]}, config=config(), embedding_metrics=False)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read as YAML"):
        read(folder)


def test_an_unknown_model_or_task_is_an_error(write_session, config):
    folder = write_session("s", head={"X": [1.0]}, embedding_metrics=False)
    with pytest.raises(UserError, match=r"no config.yaml that names its model.*NAME=.*s \.\.\."):
        read(folder)
    with pytest.raises(UserError, match=r"no config.yaml that names its task"):
        read(f"a={folder}")
    nameless = config(model_name="g2l/student")  # the source was in an environment variable
    folder = write_session("t", head={"X": [1.0]}, config=nameless, embedding_metrics=False)
    with pytest.raises(UserError, match=r"names its model"):
        read(folder)
    assert read(f"mine={folder}")[0].model == "mine"


def test_one_name_for_two_models_is_an_error(write_session, tmp_path, config):
    one = write_session("1", head={"X": [1.0]}, facts={"sha256": "1"})
    two = write_session("2", head={"X": [1.0]}, facts={"sha256": "2"})
    with pytest.raises(UserError, match=r"both called a, but have different weights"):
        read(tmp_path)
    assert [session.model for session in read(one, f"b={two}")] == ["a", "b"]
    three = write_session("3", head={"X": [1.0]}, config=config(), embedding_metrics=False)
    other = config(model_name="pathology/lunit_vits16")
    four = write_session("4", head={"X": [1.0]}, config=other, embedding_metrics=False)
    with pytest.raises(UserError, match=r"different models \(pathology/owkin_phikon and"):
        read(f"x={three}", f"x={four}")
