import errno
import subprocess
import sys

import pytest
from helpers import run_script

from g2l_plugin.files import locked, new_file, new_folder, write_text


def test_a_folder_appears_complete_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with new_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), new_folder(target) as folder:
        (folder / "b").write_text("2")
        raise ZeroDivisionError
    assert [file.name for file in target.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    (script := tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from g2l_plugin.files import Path, new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "out" / "student"
    assert run_script(script, target).returncode == -9
    (left,) = target.parent.iterdir()
    with new_folder(target) as folder:
        assert not left.exists()
        (folder / "whole").touch()
        with new_folder(target) as other:
            assert folder.exists()
            (other / "theirs").touch()
    assert [file.name for file in target.parent.iterdir()] == ["student"]
    assert [file.name for file in target.iterdir()] == ["whole"]


def test_text_is_written_completely(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "héllo")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "héllo"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), new_file(target) as partial:
        partial.write_text("ha")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    with new_file(target) as partial, new_file(target) as other:
        partial.write_text("new")
        other.write_text("other")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_parts_of_a_lock_are_held_side_by_side_but_not_with_the_whole(tmp_path):
    def takes(part):
        """Whether another process gets the lock at once."""
        code = (
            "import sys, loguru; loguru.logger.add(lambda _: sys.exit('waits'), catch=False)\n"
            "from g2l_plugin.files import locked, Path\n"
            f"with locked(Path({str(path)!r}), {part}): ..."
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.returncode == 0 or "waits" in found.stderr
        return found.returncode == 0

    path = tmp_path / "folder" / ".lock"
    with locked(path, 2):
        assert [takes(part) for part in (1, 2, None)] == [True, False, False]
    with locked(path):
        assert not takes(3)
    assert takes(None)


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, warned):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("g2l_plugin.files.fcntl.lockf", refuse)
    monkeypatch.setattr("g2l_plugin.files.fcntl.flock", refuse)
    with locked(tmp_path / ".lock"):
        assert "cannot be locked" in warned[0] and "only one process" in warned[0]
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a"]
