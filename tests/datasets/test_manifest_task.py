import pandas as pd
import pytest

from g2l_plugin.datasets.manifest_task import manifest_fact, read_task
from g2l_plugin.errors import UserError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("DATA_ROOT", "MANIFEST_FILE", "TASK_NAME", "MANIFEST_COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(len(labels))]
    pd.DataFrame({"path": names, "label": list(labels)}).to_csv(path, index=False)
    return path


def test_two_classes_are_one_output_with_binary_cross_entropy(tmp_path):
    task = read_task(write(tmp_path / "tiles.csv", ["tumour", "normal", "tumour"]))
    assert task.classes == ("normal", "tumour")
    assert (task.n_outputs, task.criterion) == (1, "torch.nn.BCEWithLogitsLoss")
    assert (task.monitor, task.target_dtype) == ("BinaryBalancedAccuracy", "torch.float32")
    assert task.metrics == {"class_path": "eva.metrics.BinaryClassificationMetrics"}


def test_more_classes_are_an_output_each(tmp_path):
    task = read_task(write(tmp_path / "tiles.csv", ["10", "9", "rest", "9"]))
    assert task.classes == ("9", "10", "rest")
    assert (task.n_outputs, task.criterion) == (3, "torch.nn.CrossEntropyLoss")
    assert (task.monitor, task.target_dtype) == ("MulticlassAccuracy", "torch.int64")
    assert task.metrics["init_args"] == {"num_classes": 3}


@pytest.mark.parametrize(
    ("centres", "n_metrics"), [("xyx", 1), ("xxx", 0), (["x", "", "y"], 0), (None, 0)]
)
def test_robustness_is_measured_where_all_tiles_have_a_centre_of_several(
    tmp_path, centres, n_metrics
):
    file = write(tmp_path / "tiles.csv", "aba")
    if centres:
        pd.read_csv(file).assign(centre=list(centres)).to_csv(file, index=False)
    assert len(read_task(file).metrics_on_all_splits) == n_metrics


def test_a_task_is_named_after_its_file_or_folder_unless_it_is_named(tmp_path):
    assert read_task(write(tmp_path / "lung tiles.csv", "ab")).name == "lung_tiles"
    prepared = write(tmp_path / "kidney" / "manifest.csv", "ab")
    assert read_task(prepared).name == "kidney"
    assert read_task(prepared, name="renal").name == "renal"
    for name in ("../up", "a/b", ".hidden"):
        with pytest.raises(UserError, match=r"Set TASK_NAME"):
            read_task(prepared, name=name)


def test_the_root_is_the_manifests_folder_unless_it_is_given(tmp_path, monkeypatch):
    file = write(tmp_path / "lists" / "tiles.csv", "ab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANIFEST_FILE", "lists/tiles.csv")
    assert (manifest_fact("root"), manifest_fact("file")) == (str(file.parent), str(file))
    monkeypatch.setenv("DATA_ROOT", "lists")  # the path is relative to it, as in other configs
    monkeypatch.setenv("MANIFEST_FILE", "tiles.csv")
    assert (manifest_fact("root"), manifest_fact("file")) == (str(file.parent), str(file))
    monkeypatch.chdir("/")  # as jsonargparse does while it reads a config
    assert manifest_fact("file", tmp_path) == str(file)


def test_an_edited_manifest_is_read_again(tmp_path):
    file = write(tmp_path / "tiles.csv", "ab")
    assert read_task(file).n_outputs == 1
    write(file, "abcd")
    assert read_task(file).n_outputs == 4


def test_what_is_no_task_is_said(tmp_path):
    with pytest.raises(UserError, match="MANIFEST_FILE is not set"):
        manifest_fact("classes")
    with pytest.raises(UserError, match="none.csv does not exist"):
        read_task(tmp_path / "none.csv")
    with pytest.raises(UserError, match="All tiles of .* have the label 'a'"):
        read_task(write(tmp_path / "tiles.csv", "aa"))
    with pytest.raises(UserError, match="1 of 2 rows of .* have no label"):
        read_task(write(tmp_path / "unlabelled.csv", ["a", ""]))
    (tmp_path / "paths.csv").write_text("path\n0.png\n")
    with pytest.raises(UserError, match="has no column label"):
        read_task(tmp_path / "paths.csv")


def test_columns_of_other_names_are_mapped(tmp_path, monkeypatch):
    file = tmp_path / "tiles.csv"
    file.write_text("image,diagnosis,site,label\n0.png,a,x,7\n1.png,b,y,7\n")
    columns = {"path": "image", "label": "diagnosis", "centre": "site"}
    task = read_task(file, columns=columns)
    assert task.classes == ("a", "b") and task.n_centres == 2
    monkeypatch.setenv("MANIFEST_FILE", str(file))
    monkeypatch.setenv("MANIFEST_COLUMNS", "{path: image, label: diagnosis, centre: site}")
    assert manifest_fact("columns") == columns
    assert manifest_fact("classes") == ["a", "b"]
    monkeypatch.setenv("MANIFEST_COLUMNS", "{path: image}")
    with pytest.raises(UserError, match="All tiles of .* have the label '7'"):
        manifest_fact("classes")


@pytest.mark.parametrize("columns", ["label=diagnosis", "[label]", "{label: "])
def test_columns_that_are_no_mapping_are_refused(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("MANIFEST_FILE", str(write(tmp_path / "tiles.csv", "ab")))
    monkeypatch.setenv("MANIFEST_COLUMNS", columns)
    with pytest.raises(UserError, match=r"MANIFEST_COLUMNS is .*Expected .*'{label: diagnosis"):
        manifest_fact("classes")


def test_a_column_that_no_manifest_has_is_refused(tmp_path):
    file = write(tmp_path / "tiles.csv", "ab")
    with pytest.raises(UserError, match="lable is no column of a manifest.*label, split"):
        read_task(file, columns={"lable": "label"})
