import numpy as np
import pytest
import torch
from helpers import WIDER, save_tiny_model
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.distillation import teacher_cache
from g2l_plugin.distillation.teacher_cache import TeacherCache
from g2l_plugin.distillation.teachers import Teachers
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError

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


def test_a_damaged_part_is_told_and_passed_over(tmp_path, told):
    cache = TeacherCache(tmp_path, KEY, 20)
    for tile in (1, 2):
        cache.put(np.array([tile]), 0, rows([tile]))
        cache.flush()
    part = sorted(cache.folder.rglob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-8])
    again = TeacherCache(tmp_path, KEY, 20)
    assert again.get(np.array([1, 2]), 0)[0].sum() == 1
    assert sum(f"{part} is damaged" in message for message in told) == 1


def test_a_disk_that_is_full_is_told_once_and_nothing_half_written_stays(
    tmp_path, told, monkeypatch
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
    assert sum("Nothing more is written" in message for message in told) == 1
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == ["key.json"]


@pytest.fixture
def teachers(tmp_path):
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    teachers = Teachers([EncoderSource(f"local-dir:{teacher}")])
    teachers.open_caches(tmp_path / "cache", {"seed": 1}, "32-true", "tiles", 20)
    return teachers


def test_only_what_is_not_held_is_computed(teachers, tmp_path):
    images, tiles = torch.rand(6, 3, 32, 32), np.array([9, 4, 0, 2, 7, 5])
    computed = []
    teachers.encoders[0].register_forward_pre_hook(lambda _, given: computed.append(len(given[0])))
    (expected,) = teachers(images)
    teachers.embed_tiles(images[:4], tiles[:4], 0)
    teachers.flush_caches()
    (found,) = teachers.embed_tiles(images, tiles, 0)
    torch.testing.assert_close(found, expected)
    teachers.flush_caches()
    (again,) = teachers.embed_tiles(images, tiles, 0)
    assert torch.equal(again, found)
    teachers.embed_tiles(images, tiles, 1)
    assert computed == [6, 4, 2, 6]


def test_what_stands_in_for_a_tile_is_neither_kept_nor_taken(teachers):
    images, tiles = torch.rand(6, 3, 32, 32), np.array([9, 4, 0, 2, 7, 5])
    others = torch.tensor([False, True, False, False, True, False])
    stand_ins = torch.where(others[:, None, None, None], torch.rand(6, 3, 32, 32), images)
    (expected,) = teachers(stand_ins)
    for _ in range(2):
        (found,) = teachers.embed_tiles(stand_ins, tiles, 0, stands_in=others.numpy())
        torch.testing.assert_close(found, expected)
        teachers.flush_caches()
    computed = []
    teachers.encoders[0].register_forward_pre_hook(lambda _, given: computed.append(len(given[0])))
    (found,) = teachers.embed_tiles(images, tiles, 0)
    assert computed == [2]
    torch.testing.assert_close(found, teachers(images)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_computes_in_the_precision_of_its_weights(tmp_path, dtype):
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    teachers = Teachers([EncoderSource(f"local-dir:{teacher}", dtype=dtype)])
    (encoder,), images, mixed = teachers.encoders, torch.rand(2, 3, 32, 32), []
    encoder.register_forward_pre_hook(lambda *_: mixed.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = teachers(images)
    assert mixed == [dtype == "float32"]
    with torch.no_grad():
        torch.testing.assert_close(found.float(), encoder(images).float(), rtol=0.05, atol=0.05)


def test_what_cannot_be_kept_is_told(teachers, tmp_path):
    with pytest.raises(UserError, match="tiles that have numbers"):
        teachers.embed_tiles(torch.rand(2, 3, 32, 32), None, 0)
    random = Teachers([EncoderSource("timm:vit_tiny_patch16_224", pretrained=False)])
    with pytest.raises(UserError, match="has random weights"):
        random.open_caches(tmp_path / "cache", {}, "32-true", "tiles", 20)
