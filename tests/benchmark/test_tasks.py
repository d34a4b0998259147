import pytest
from helpers import ROOT

from g2l_plugin.benchmark.tasks import GROUPS, choose_tasks, find_tasks, own_task
from g2l_plugin.datasets.prepared import write_variables
from g2l_plugin.errors import UserError


def test_every_config_is_a_task_of_a_group():
    configs = sorted(path.stem for path in (ROOT / "configs" / "benchmarks").glob("*.yaml"))
    grouped = {name for group in GROUPS.values() for name in group}
    assert sorted([*grouped, "demo", "manifest"]) == configs
    twice = [name for name in grouped if sum(name in group for group in GROUPS.values()) > 1]
    assert twice == ["bcss"]  # of breast cancer, and segmentation
    assert {task.name for task in find_tasks(["all"], ROOT) if task.segments} == {
        "consep",
        "monusac",
        "bcss",
    }


def test_every_task_that_is_not_there_says_where_its_data_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("DOWNLOAD_DATA", raising=False)
    there, missing = choose_tasks(["all", "demo"], tmp_path)
    assert [task.name for task in there] == ["demo"]  # it is generated
    every = {name for group in GROUPS.values() for name in group}
    assert len(missing) == len(every) and {task.name for task in missing} == every
    assert all(str(tmp_path) in task.missing for task in missing)
    assert all("https://" in t.missing or "g2l prepare" in t.missing for t in missing)
    monkeypatch.setenv("DOWNLOAD_DATA", "true")
    assert {"bach", "crc"} <= {task.name for task in choose_tasks(["all"], tmp_path)[0]}


def test_a_task_with_data_knows_its_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGNIFICATION", "200X")
    (tmp_path / "breakhis" / "BreaKHis_v1").mkdir(parents=True)
    (task,) = find_tasks(["breakhis"], tmp_path)
    assert not task.missing and task.folder == "breakhis_200X"
    assert task.variables == {"DATA_ROOT": str(tmp_path / "breakhis")}


def test_a_prepared_task_is_found_wherever_its_tiles_are(tmp_path):
    download, output = tmp_path / "download", tmp_path / "data" / "idc"
    for folder in (download, output):
        folder.mkdir(parents=True)
    manifest = output / "manifest.csv"
    manifest.write_text("path,label,split\na/1.png,0,train\n")
    (download / "a").mkdir()
    (download / "a" / "1.png").touch()
    assert "not its first row" in find_tasks(["idc"], tmp_path / "data")[0].missing
    write_variables(manifest, download)
    (task,) = find_tasks(["idc"], tmp_path / "data")
    assert task.variables == {"DATA_ROOT": str(download), "MANIFEST_FILE": str(manifest)}
    (download / "a").rename(output / "a")  # as cut tiles are
    assert find_tasks(["idc"], tmp_path / "data")[0].variables["DATA_ROOT"] == str(output)


def test_names_are_chosen_once_and_unknown_ones_refused(tmp_path):
    names = [task.name for task in find_tasks(["crc", "colorectal", "crc"], tmp_path)]
    assert names == ["crc", "mhist", "unitopatho"]
    with pytest.raises(UserError, match=r"no task 'bahc'\. Expected bach, .*breast, .*all"):
        find_tasks(["bahc"], tmp_path)
    with pytest.raises(UserError, match="no task 'manifest'.*--manifest"):
        find_tasks(["manifest"], tmp_path)


def test_manifests_are_named_and_do_not_collide(tmp_path):
    file = tmp_path / "tiles.csv"
    file.write_text("path,label\na.png,x\nb.png,y\n")
    task = own_task(f"lung={file}")
    assert (task.name, task.folder, task.manifest) == ("lung", "lung", file)
    assert task.variables["MANIFEST_FILE"] == str(file)
    with pytest.raises(UserError, match="Two manifests are called tiles"):
        choose_tasks([], tmp_path, [str(file), str(file)])
    with pytest.raises(UserError, match="called bach, as is one of this package"):
        own_task(f"bach={file}")
    file.write_text("path\na.png\n")
    with pytest.raises(UserError, match="has no column label"):
        own_task(str(file))
