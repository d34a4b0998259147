import dataclasses
from pathlib import Path

from g2l_plugin.doctor import disk
from g2l_plugin.doctor.disk import Folder, check_disk, find_folder, judge_folders

GB = 10**9


def test_folders_of_one_disk_share_its_room():
    logs = Folder("OUTPUT_ROOT", Path("logs"), 16 * GB, disk=1, free=20 * GB)
    cache = Folder("HF_HOME", Path("hub"), 6 * GB, disk=1, free=20 * GB)
    (together,) = judge_folders([logs, cache])
    assert together.mark == "problem" and "needed are 22.0 GB" in together.fact
    assert "set OUTPUT_ROOT to a folder on a larger disk" in together.advice
    apart = judge_folders([logs, dataclasses.replace(cache, disk=2)])
    assert [finding.mark for finding in apart] == ["ok", "ok"]


def test_a_folder_that_does_not_exist_counts_by_the_one_above_it(tmp_path):
    folder = find_folder("OUTPUT_ROOT", tmp_path / "a" / "b", 5)
    assert folder.error == "" and folder.free > 0 and folder.disk == tmp_path.stat().st_dev
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    (finding,) = judge_folders([find_folder("INDEX_ROOT", tmp_path / "file" / "index", 5)])
    assert finding.mark == "problem"
    assert f"INDEX_ROOT={tmp_path}/file/index cannot be written to" in finding.fact
    assert "Set INDEX_ROOT" in finding.advice


def test_only_folders_that_the_run_writes_to_are_looked_at(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    looked = []
    monkeypatch.setattr(disk, "judge_folders", lambda folders: looked.append(folders) or [])
    check_disk(settings)
    packed = dataclasses.replace(
        settings, packed_root="s3://tiles", teacher_cache=tmp_path / "cache"
    )
    check_disk(packed)
    names = [[folder.variable for folder in folders] for folders in looked]
    assert names == [
        ["OUTPUT_ROOT", "INDEX_ROOT", "HF_HOME"],
        ["OUTPUT_ROOT", "TEACHER_CACHE", "HF_HOME"],
    ]
