from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import WIDER, save_tiny_model

from g2l_plugin.distillation.running.teacher_caches import TeacherCaches
from g2l_plugin.distillation.teachers import Teachers, embed
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch


class Tiles:
    """What the caches ask of a dataset."""

    def __init__(self, *paths):
        self.tiles = SimpleNamespace(paths=paths)

    def fingerprint(self):
        return "tiles"

    def __len__(self):
        return 20


@pytest.fixture
def run(tmp_path):
    """A teacher and its cache."""
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    sources = [EncoderSource(f"local-dir:{teacher}")]
    teachers = Teachers(sources)
    settings = {"seed": 1}, "32-true", Tiles()
    return teachers, TeacherCaches(tmp_path / "cache", sources, teachers.encoders, *settings)


def embed_with(caches, images, numbers, view=0, substitutes=None):
    (found,) = caches.embed(images, TileBatch(images, numbers, substitutes), view, embed)
    return found


def count_images(teachers):
    """Numbers of images of each forward pass from here on."""
    computed = []
    teachers.encoders[0].register_forward_pre_hook(lambda _, given: computed.append(len(given[0])))
    return computed


def test_other_slides_under_the_same_names_have_another_cache(tmp_path):
    sources = [EncoderSource(f"local-dir:{save_tiny_model(tmp_path / 'teacher', **WIDER)}")]
    encoders = Teachers(sources).encoders
    slide = tmp_path / "a.svs"

    def folder():
        caches = TeacherCaches(tmp_path / "cache", sources, encoders, {}, "32-true", Tiles(slide))
        return caches._caches[0].folder

    slide.write_bytes(b"1")
    first = folder()
    assert folder() == first
    slide.write_bytes(b"22")
    assert folder() != first


def test_only_what_is_not_held_is_computed(run):
    teachers, caches = run
    images, tiles = torch.rand(6, 3, 32, 32), np.array([9, 4, 0, 2, 7, 5])
    computed = count_images(teachers)
    (expected,) = teachers(images)
    embed_with(caches, images[:4], tiles[:4])
    caches.flush()
    found = embed_with(caches, images, tiles)
    torch.testing.assert_close(found, expected)
    caches.flush()
    assert torch.equal(embed_with(caches, images, tiles), found)
    embed_with(caches, images, tiles, view=1)
    assert computed == [6, 4, 2, 6]


def test_a_substitute_tile_is_neither_kept_nor_read(run):
    teachers, caches = run
    images, tiles = torch.rand(6, 3, 32, 32), np.array([9, 4, 0, 2, 7, 5])
    others = torch.tensor([False, True, False, False, True, False])
    substitutes = torch.where(others[:, None, None, None], torch.rand(6, 3, 32, 32), images)
    (expected,) = teachers(substitutes)
    for _ in range(2):
        found = embed_with(caches, substitutes, tiles, substitutes=others.numpy())
        torch.testing.assert_close(found, expected)
        caches.flush()
    computed = count_images(teachers)
    found = embed_with(caches, images, tiles)
    assert computed == [2]
    torch.testing.assert_close(found, teachers(images)[0])


def test_embeddings_that_cannot_be_kept_are_an_error(run, tmp_path):
    _, caches = run
    with pytest.raises(UserError, match="numbered tiles"):
        embed_with(caches, torch.rand(2, 3, 32, 32), None)
    sources = [EncoderSource("timm:vit_tiny_patch16_224", pretrained=False)]
    encoders = Teachers(sources).encoders
    with pytest.raises(UserError, match="has random weights"):
        TeacherCaches(tmp_path / "cache", sources, encoders, {}, "32-true", Tiles())
    with pytest.raises(UserError, match="numbered tiles"):
        TeacherCaches(tmp_path / "cache", sources, encoders, {}, "32-true", None)
