import pytest

from g2l_plugin.files import new_file, new_folder, write_text


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
