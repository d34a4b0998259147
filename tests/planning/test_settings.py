import dataclasses
from pathlib import Path

import pytest
from helpers import cache_weights

from g2l_plugin.errors import UserError
from g2l_plugin.planning.settings import Model, read_settings

VARIABLES = ("TEACHER", "STUDENT", "BATCH_SIZE", "MICRO_BATCH_SIZE", "NUM_DEVICES", "CANCER")
FOLDERS = ("OUTPUT_ROOT", "INDEX_ROOT", "SLIDES_ROOT", "SLIDES", "PACKED_ROOT", "TEACHER_CACHE")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*VARIABLES, *FOLDERS, "N_DATA_WORKERS", "BUFFER_TILES", "OVERWRITE_MPP"):
        monkeypatch.delenv(name, raising=False)


def test_without_variables_they_are_the_recipe(settings):
    recipe = read_settings("g2l_breast")
    folders = {
        "output_root": Path("logs/g2l_breast"),
        "index_root": Path("data/index/g2l_breast"),
        "slides_root": Path("data/tcga_brca"),
    }
    assert recipe == dataclasses.replace(settings, **folders)


def test_variables_are_read_as_evas_command_line_reads_them(monkeypatch):
    values = {
        "BATCH_SIZE": "128",
        "MICRO_BATCH_SIZE": "16",
        "NUM_DEVICES": "auto",
        "N_DATA_WORKERS": "null",
        "SLIDES": "null",
        "PACKED_ROOT": "s3://bucket/tiles",
        "OVERWRITE_MPP": "0.25",
        "SLIDES_ROOT": "~/slides",
        "STUDENT": "hf-hub:org/name@v1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = read_settings("g2l_prostate")
    assert (found.batch_size, found.micro_batch_size, found.devices) == (128, 16, None)
    assert (found.workers, found.slides, found.packed_root) == (None, None, "s3://bucket/tiles")
    assert (found.overwrite_mpp, found.slides_root) == (0.25, Path.home() / "slides")
    assert found.student.repo_id == "org/name" and found.student.parameters is None


def test_the_other_recipes_are_read_too(monkeypatch):
    monkeypatch.setenv("CANCER", "lung")
    two, small = read_settings("g2l_breast_two_teachers"), read_settings("g2l_small")
    assert [t.source for t in two.teachers][1] == "hf-hub:paige-ai/Virchow2"
    assert (small.student.source, small.batch_size) == ("scratch:vits14", 256)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BATCH_SIZE", "many"), ("BATCH_SIZE", "0"), ("N_DATA_WORKERS", "-1"), ("OVERWRITE_MPP", "x")],
)
def test_a_value_that_cannot_be_is_told_with_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is '{value}'. Expected"):
        read_settings("g2l_breast")


def test_a_config_without_the_recipe_is_refused():
    with pytest.raises(UserError, match="quickstart is not a config of the recipe"):
        read_settings("quickstart")
    with pytest.raises(UserError, match="CANCER is not set"):
        read_settings("g2l_small")


def test_only_weights_of_the_asked_revision_count_as_cached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache_weights(tmp_path, "org/name")
    assert Model("TEACHER", "hf-hub:org/name").is_cached()
    assert Model("TEACHER", "hf-hub:org/name@abc").is_cached()
    assert not Model("TEACHER", "hf-hub:org/name", "v2").is_cached()
    assert not Model("TEACHER", "hf-hub:org/other").is_cached()
