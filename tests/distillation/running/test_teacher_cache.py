import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.distillation.running import teacher_cache
from g2l_plugin.distillation.running.teacher_cache import TeacherCache

KEY = {"sha256": "f00d", "view": {"seed": 1}}


def rows(tiles, view=0):
    """What a teacher of five features gives."""
    return torch.as_tensor(tiles)[:, None] * 10.0 + torch.arange(5) + view / 8


def test_what_one_run_has_put_another_gets(tmp_path):
    first = TeacherCache(tmp_path, KEY, n_tiles=20, rows_in_part=4)
    tiles = np.array([3, 7, 1])
    first.put(tiles, 0, rows(tiles))
    assert not first.get(tiles, 0)[0].any()  # not yet written
    first.put(tiles + 10, 0, rows(tiles + 10))
    first.put(tiles, 2, rows(tiles, 2).bfloat16())
    assert first.get(tiles, 0)[0].all() and not first.get(tiles, 2)[0].any()
    first.flush()
    second = TeacherCache(tmp_path, KEY, n_tiles=20)
    asked = np.array([11, 2, 7])
    held, found = second.get(asked, 0)
    assert held.tolist() == [True, False, True]
    assert torch.equal(found, rows([11, 7]))
    held, found = second.get(tiles, 2)
    assert held.all() and torch.equal(found, rows(tiles, 2).bfloat16())
    held, found = second.get(tiles, 1)
    assert not held.any() and found is None


def test_another_key_is_another_cache(tmp_path):
    cache = TeacherCache(tmp_path, KEY, 20)
    cache.put(np.array([1]), 0, rows([1]))
    cache.flush()
    other = TeacherCache(tmp_path, KEY | {"view": {"seed": 2}}, 20)
    assert not other.get(np.array([1]), 0)[0].any()
    assert other.folder != cache.folder and (cache.folder / "key.json").is_file()


def test_processes_see_each_others_parts_when_they_look(tmp_path):
    first, second = (TeacherCache(tmp_path, KEY, 20) for _ in range(2))
    assert not second.get(np.array([4]), 0)[0].any()
    first.put(np.array([4]), 0, rows([4]))
    first.flush()
    assert not second.get(np.array([4]), 0)[0].any()
    second.refresh()
    assert torch.equal(second.get(np.array([4]), 0)[1], rows([4]))


@given(data=st.data())
def test_it_gives_what_was_put_in_any_order(tmp_path_factory, data):
    cache = TeacherCache(tmp_path_factory.mktemp("cache"), KEY, 30, rows_in_part=7)
    batches = data.draw(st.lists(st.permutations(range(30)).map(lambda p: p[:6]), max_size=6))
    for number, batch in enumerate(batches):
        cache.put(np.array(batch), number % 2, rows(batch, number % 2))
    cache.flush()
    for view in (0, 1):
        held, found = cache.get(np.arange(30), view)
        expected = {tile for batch in batches[view::2] for tile in batch}
        assert set(np.flatnonzero(held).tolist()) == expected
        if expected:
            assert torch.equal(found, rows(np.flatnonzero(held), view))


def test_a_damaged_part_is_reported_and_skipped(tmp_path, warned):
    cache = TeacherCache(tmp_path, KEY, 20)
    for tile in (1, 2):
        cache.put(np.array([tile]), 0, rows([tile]))
        cache.flush()
    part = sorted(cache.folder.rglob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-8])
    again = TeacherCache(tmp_path, KEY, 20)
    assert again.get(np.array([1, 2]), 0)[0].sum() == 1
    assert sum(f"{part} is damaged" in message for message in warned) == 1


def test_a_full_disk_is_reported_once_and_leaves_nothing_half_written(
    tmp_path, warned, monkeypatch
):
    cache = TeacherCache(tmp_path, KEY, 20)

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache, "save_file", fail)
    for tile in (1, 2):
        cache.put(np.array([tile]), 0, rows([tile]))
        cache.flush()
    assert not cache.get(np.array([1, 2]), 0)[0].any()
    assert sum("is no longer written" in message for message in warned) == 1
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == ["key.json"]
