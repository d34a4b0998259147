import copy
import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embedding_files import EmbeddingsInMemory, read_embeddings
from g2l_plugin.evaluation.embedding_metrics import CKA, EmbeddingMetrics
from g2l_plugin.metrics.cka import align
from g2l_plugin.metrics.knn import KNNVoting
from g2l_plugin.metrics.metric import EmbeddingMetric, MetricResult, merge
from g2l_plugin.metrics.probe import LogisticProbe
from g2l_plugin.metrics.robustness import RobustnessIndex
from g2l_plugin.slides.patients import list_patients

MODEL = {"name": "hf-hub:org/name", "sha256": "ab" * 32, "complete": True, "parameters": 7}


class Counting(EmbeddingMetric):
    """Counts the tiles and the calls."""

    def __init__(self):
        self.calls = 0

    def compute(self, train, evaluated):
        self.calls += 1
        return MetricResult(
            {"Tiles": float(len(evaluated)), "Train": float(len(train))},
            details={"intervals": {"Tiles": {"low": 1.0}}},
        )


def save(folder, seed=0, test_label=None, one_centre=False):
    """Write embeddings of two classes, two centres and three splits; return the folder."""
    rng = np.random.default_rng(seed)
    rows = []
    folder.mkdir(parents=True)
    for number in range(36):
        label, centre = number % 2, "ab"[number // 2 % 2 * (not one_centre)]
        split = ("train", "val", "test")[number // 12]
        if split == "test" and test_label is not None:
            label = test_label
        vector = rng.normal(0, 0.1, 4) + np.array([label, 1 - label, 1, centre == "a"])
        torch.save([torch.tensor(vector, dtype=torch.float32)], folder / f"{number}.pt")
        name = f"BRACS_{number // 4}_N_{number}.png"
        rows.append((name, f"{number}.pt", label, split, centre))
    columns = ["origin", "embeddings", "target", "split", "centre"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    (folder / "model.json").write_text(json.dumps(MODEL))
    return folder


@pytest.fixture
def compute_on(tmp_path):
    """Run a callback on a split, as eva's test does; return the logged values and the folder."""

    def run(callback, split="test"):
        logged = {}
        trainer = SimpleNamespace(
            log_dir=str(tmp_path / "run_0"),
            is_global_zero=True,
            world_size=1,
            strategy=SimpleNamespace(
                broadcast=lambda values: values, root_device=torch.device("cpu")
            ),
            state=SimpleNamespace(fn="validate"),
        )
        module = SimpleNamespace(log_dict=logged.update)
        if split == "test":
            callback.on_test_epoch_end(trainer, module)
        else:
            callback.on_validation_epoch_end(trainer, module)
        return logged, tmp_path / "run_0" / "metrics"

    return run


def test_metrics_are_logged_and_written_with_their_model(compute_on, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    root = str(save(tmp_path / "embeddings"))
    callback = EmbeddingMetrics(
        root,
        "bracs",
        [KNNVoting(3)],
        metrics_on_all_splits=[Counting()],
        classes=["no", "yes"],
        groups={"slide": r"BRACS_(\d+)_"},
        model_label="student",
    )
    logged, folder = compute_on(callback)
    assert logged["test/KNNAccuracy"] == 1
    assert logged["test/Tiles"] == logged["test/Train"] == 36
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["task"] == "bracs" and facts["classes"] == ["no", "yes"]
    assert facts["model"] == MODEL | {"name": "student"}
    found = json.loads((folder / "test.json").read_text())
    assert found["values"] == {name.removeprefix("test/"): value for name, value in logged.items()}
    assert (found["n_tiles"], found["n_units"]) == (12, 3)
    assert set(found["details"]["intervals"]) >= {"Tiles", "KNNAccuracy"}
    table = pd.read_parquet(folder / "test.parquet")
    assert set(table) == {
        "name", "label", "centre", "slide", "knn/0", "knn/1", "pca/1", "pca/2"
    }  # fmt: skip
    np.testing.assert_allclose(table["knn/0"] + table["knn/1"], 1, atol=1e-6)
    assert table["slide"].tolist() == [str(number // 4) for number in range(24, 36)]


def test_class_names_in_another_order_than_the_labels_are_refused_before_embedding(tmp_path):
    callback = EmbeddingMetrics(str(tmp_path), "idc", [], classes=["no_idc", "idc"])
    dataset = SimpleNamespace(classes=["idc", "no_idc"])
    data = SimpleNamespace(datasets=SimpleNamespace(predict=[dataset]))
    with pytest.raises(UserError, match="classes no_idc, idc, and the dataset has idc, no_idc"):
        callback.setup(SimpleNamespace(datamodule=data), None, "predict")


def test_a_label_that_leaves_its_folder_is_refused():
    with pytest.raises(UserError, match="label is '../up' .MODEL_LABEL."):
        EmbeddingMetrics("embeddings", "task", [], model_label="../up")
    EmbeddingMetrics("embeddings", "task", [], model_label="pathology/my..model")


def test_runs_of_one_session_compute_once(compute_on, tmp_path):
    metric = Counting()
    callback = EmbeddingMetrics(str(save(tmp_path / "embeddings")), "task", [metric])
    first, _ = compute_on(copy.deepcopy(callback))
    again = copy.deepcopy(callback)
    second, _ = compute_on(again)
    assert first == second == {"test/Tiles": 12, "test/Train": 12}
    assert again.metrics[0].calls == 0


def test_validation_during_a_fit_computes_nothing(compute_on, tmp_path):
    callback = EmbeddingMetrics(str(save(tmp_path / "embeddings")), "task", [Counting()])
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    callback.on_validation_epoch_end(trainer, None)
    logged, folder = compute_on(callback, "val")
    assert set(logged) == {"val/Tiles", "val/Train"} and (folder / "val.json").is_file()


def test_with_one_centre_robustness_is_undefined(compute_on, tmp_path):
    root = save(tmp_path / "embeddings", one_centre=True)
    logged, folder = compute_on(EmbeddingMetrics(str(root), "task", [RobustnessIndex([3])]))
    assert logged == {}
    undefined = json.loads((folder / "test.json").read_text())["undefined"]
    assert undefined["PathoROBIndex/k=3"] == "all tiles have the same centre, a"


def test_cka_is_with_the_teachers_embeddings_of_the_same_tiles(compute_on, tmp_path):
    root = save(tmp_path / "student", seed=1)
    logged, _ = compute_on(EmbeddingMetrics(str(root), "task", [CKA()]))
    assert logged == {}
    teacher = save(tmp_path / "teacher")
    logged, _ = compute_on(EmbeddingMetrics(str(root), "task", [CKA(str(teacher))]))
    assert 0.5 < logged["test/LinearCKA"] < 1
    itself, _ = compute_on(EmbeddingMetrics(str(teacher), "task", [CKA(str(teacher))]))
    assert itself["test/LinearCKA"] == pytest.approx(1)


def test_cka_with_a_teachers_embeddings_of_other_images_is_refused(tmp_path):
    embeddings = read_embeddings(save(tmp_path / "embeddings"), "val")
    student, teacher = (dataclasses.replace(embeddings, images=images) for images in ("1", "2"))
    with pytest.raises(UserError, match="same images"):
        align(student, teacher)


def test_cka_of_a_constant_embedding_is_undefined(tmp_path):
    embeddings = read_embeddings(save(tmp_path / "embeddings"), "val")
    constant = dataclasses.replace(embeddings, values=np.ones_like(embeddings.values))
    result = align(constant, embeddings)
    assert result.values == {} and set(result.undefined) == {"LinearCKA", "LinearCKAUnbiased"}


@pytest.mark.parametrize(
    ("metric", "options", "reason"),
    [
        (KNNVoting(3), {"test_label": 5}, "No training tile has class 5"),
        (LogisticProbe(), {"test_label": 5}, "No training tile has class 5"),
        (KNNVoting(13), {}, "k is 13, but there are 12 embeddings"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_undefined_and_the_rest_is_kept(
    compute_on, tmp_path, metric, options, reason
):
    root = save(tmp_path / "embeddings", **options)
    logged, folder = compute_on(EmbeddingMetrics(str(root), "task", [metric, Counting()]))
    assert set(logged) == {"test/Tiles", "test/Train"}
    undefined = json.loads((folder / "test.json").read_text())["undefined"]
    assert set(undefined) == set(metric.names)
    assert all(text.startswith(reason) for text in undefined.values())


def test_a_group_whose_pattern_matches_no_name_is_ignored(compute_on, tmp_path):
    root = save(tmp_path / "embeddings")
    callback = EmbeddingMetrics(str(root), "task", [Counting()], groups={"slide": r"^(\d+)"})
    _, folder = compute_on(callback)
    assert json.loads((folder / "test.json").read_text())["n_units"] == 12
    with pytest.raises(UserError, match="has 0 capturing groups"):
        EmbeddingMetrics(str(root), "task", [], groups={"slide": r"\d+"})


def test_details_of_metrics_are_merged():
    a, b = ({"intervals": {name: 1}, "k": name} for name in "ab")
    merged = merge([MetricResult({"a": 1.0}, details=a), MetricResult({"b": 2.0}, details=b)])
    assert merged.values == {"a": 1, "b": 2}
    assert merged.details == {"intervals": {"a": 1, "b": 1}, "k": "b"}


def test_embeddings_in_memory_equal_evas(tmp_path):
    root = save(tmp_path / "embeddings")
    dataset = EmbeddingsInMemory(str(root), "manifest.csv", "val")
    dataset.setup()
    assert len(dataset) == 12
    vector, target = dataset[3]
    torch.testing.assert_close(vector, torch.load(root / "15.pt")[0])
    assert target == 1


SITE = "TCGA-A1-"


def save_patients(folder, training=None, name=SITE + "{:04}", leave_out=(), seed=0):
    """Save embeddings with two tiles of each of 18 patients, 6 in each split."""
    save(folder, seed)
    table = pd.read_csv(folder / "manifest.csv")
    table["patient"] = [name.format(number // 2) for number in range(36)]
    gone = table["patient"].isin([name.format(patient) for patient in leave_out])
    table[~gone].to_csv(folder / "manifest.csv", index=False)
    if training is not None:
        model = MODEL | {"training_patients": list_patients(training)}
        (folder / "model.json").write_text(json.dumps(model))
    return folder


@pytest.mark.parametrize("shared", [(12,), (13, 16), (12, 13, 14, 15, 16)])
def test_metrics_without_training_patients_are_those_of_a_manifest_without_them(
    compute_on, tmp_path, shared
):
    teacher = str(save_patients(tmp_path / "teacher", seed=3))
    options = {"metrics_on_all_splits": [RobustnessIndex([3])]}
    training = [f"{SITE}{patient:04}-01Z-00-DX1" for patient in (*shared, 99)]
    root = save_patients(tmp_path / "all", training)
    _, folder = compute_on(
        EmbeddingMetrics(
            str(root), "task", [KNNVoting(3), LogisticProbe(), CKA(teacher)], **options
        )
    )
    facts = json.loads((folder / "facts.json").read_text())
    assert "training_patients" not in facts["model"]
    found = json.loads((folder / "test.json").read_text())["training_patients"]
    own, on_all = found["evaluated"], found["all_splits"]
    assert (own["n_patients"], own["n_shared"]) == (6, len(shared))
    assert (on_all["n_patients"], on_all["n_shared"]) == (18, len(shared))
    assert not own["at_least"] and not own["by_name"]
    # The same without the patients from the start.
    teacher = str(save_patients(tmp_path / "teacher_rest", leave_out=shared, seed=3))
    rest = save_patients(tmp_path / "rest", leave_out=shared)
    _, folder = compute_on(
        EmbeddingMetrics(
            str(rest), "task", [KNNVoting(3), LogisticProbe(), CKA(teacher)], **options
        )
    )
    expected = json.loads((folder / "test.json").read_text())
    assert "training_patients" not in expected
    assert own["values"] | on_all["values"] == pytest.approx(expected["values"])
    assert own["undefined"] | on_all["undefined"] == expected["undefined"]


def shared_patients(compute_on, root):
    _, folder = compute_on(EmbeddingMetrics(str(root), "task", [KNNVoting(3)]))
    return json.loads((folder / "test.json").read_text()).get("training_patients")


def test_unknown_training_patients_are_never_said_to_be_none(compute_on, tmp_path):
    other, tested = f"{SITE}0099", f"{SITE}0012"
    assert shared_patients(compute_on, save_patients(tmp_path / "1")) is None
    assert shared_patients(compute_on, save_patients(tmp_path / "2", [""])) is None
    assert shared_patients(compute_on, save_patients(tmp_path / "3", [other, ""])) is None
    none = shared_patients(compute_on, save_patients(tmp_path / "4", [other]))["evaluated"]
    assert none["n_shared"] == 0 and none["n_patients"] == 6 and none["values"] == {}
    some = shared_patients(compute_on, save_patients(tmp_path / "5", [tested, ""]))["evaluated"]
    assert some["n_shared"] == 1 and some["at_least"]
    no_patients = save(tmp_path / "6")
    (no_patients / "model.json").write_text(
        json.dumps(MODEL | {"training_patients": list_patients([tested])})
    )
    assert shared_patients(compute_on, no_patients) is None


def test_names_that_are_no_barcodes_may_be_of_others_and_all_may_be_shared(compute_on, tmp_path):
    root = save_patients(tmp_path / "all", [f"P{number}" for number in range(18)], "P{}")
    found = shared_patients(compute_on, root)["evaluated"]
    assert found["by_name"] and found["n_shared"] == found["n_patients"] == 6
    assert found["values"] == {}
    assert set(found["undefined"].values()) == {
        "all patients were in the student's training cohort"
    }


def test_metrics_are_computed_where_the_run_computes(tmp_path, compute_on, monkeypatch):
    root = save(tmp_path / "data")
    expected, _ = compute_on(EmbeddingMetrics(str(root), "task", [KNNVoting(k=1)]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and `.to("cuda")` would fail
    found, _ = compute_on(EmbeddingMetrics(str(root), "task", [KNNVoting(k=1)]))
    assert found == expected and expected
