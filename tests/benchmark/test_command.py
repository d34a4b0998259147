"""`g2l benchmark` with a stand-in for eva, which is an executable on the PATH."""

import sys

import pytest

from g2l_plugin import cli


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """An `eva` that notes its model and task, and fails on CRC."""
    folder = tmp_path / "bin"
    folder.mkdir()
    code = """
import os, sys
open(os.environ["RAN"], "a").write(os.environ["DATA_ROOT"] + "\\n")
if os.environ["DATA_ROOT"].endswith("crc"):
    sys.exit("error: CRC is incomplete")
"""
    (folder / "eva").write_text(f"#!{sys.executable}\n{code}")
    (folder / "eva").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.chdir(tmp_path)
    for task in ("crc", "mhist", "bach"):
        (tmp_path / "data" / task / "images").mkdir(parents=True)
    return lambda: [line.rpartition("/")[2] for line in (tmp_path / "ran").read_text().split()]


def test_it_goes_on_after_a_failure_and_ends_with_a_line_of_each(stand_in, capsys):
    assert cli.main(["benchmark", "demo:teacher", "--tasks", "colorectal", "bach"]) == 1
    assert stand_in() == ["crc", "mhist", "bach"]
    err = capsys.readouterr().err
    assert "not there: unitopatho: " in err and "zenodo.org/records/4643645" in err
    *_, failed, last = err.splitlines()
    assert failed == "failed: crc (teacher): CRC is incomplete"
    assert last.startswith("error: 1 of 3 runs failed")


def test_a_shard_runs_every_nth_task(stand_in, capsys):
    words = ["benchmark", "demo:teacher", "--tasks", "mhist", "crc", "bach", "--dry-run"]
    assert cli.main([*words, "--shard", "1/2"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert cli.main([*words, "--shard=2/2"]) == 0
    second = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in first] == ["mhist.yaml", "bach.yaml"]
    assert [line.rpartition("/")[2] for line in second] == ["crc.yaml"]


def test_without_any_data_it_says_where_to_get_it(stand_in, capsys):
    assert cli.main(["benchmark", "demo:teacher", "--tasks", "idc"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert "g2l prepare idc DOWNLOAD" in first
    assert last.startswith("error: No data of these tasks is in data (--data)")
