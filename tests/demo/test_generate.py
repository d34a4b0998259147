import csv
import dataclasses

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image

from g2l_plugin.demo import generate as cohort_lib
from g2l_plugin.demo.generate import CENTRES, load_cohort, make_cohort
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE, TISSUE_CLASSES
from g2l_plugin.errors import UserError

SIZE = 768


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_slides_are_pyramids_with_mpp_and_masks_mark_their_tissue(tmp_path):
    slides = make_cohort(tmp_path, n_slides=4, size=SIZE)
    assert load_cohort(tmp_path) == slides
    seen = set()
    for slide in slides:
        with openslide.OpenSlide(str(slide.path)) as opened:
            assert opened.level_dimensions == ((SIZE,) * 2, (SIZE // 2,) * 2, (SIZE // 4,) * 2)
            assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            image = np.asarray(opened.read_region((0, 0), 0, (SIZE, SIZE)).convert("RGB"))
        mask = np.asarray(Image.open(slide.mask))
        assert mask.shape == (SIZE // MASK_DOWNSAMPLE,) * 2
        seen |= set(np.unique(mask))
        tissue = mask.repeat(MASK_DOWNSAMPLE, 0).repeat(MASK_DOWNSAMPLE, 1) > 0
        assert image[~tissue].mean() > image[tissue].mean() + 40
    assert seen == set(range(len(TISSUE_CLASSES) + 1))
    with (tmp_path / "manifest.csv").open() as file:
        assert [row["centre"] for row in csv.DictReader(file)] == list(CENTRES)


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path):
    for name, seed, workers in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        make_cohort(tmp_path / name, n_slides=2, seed=seed, size=SIZE, workers=workers)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[key] != c[key] for key in a if key.suffix in (".tiff", ".png"))


def test_an_existing_cohort_is_kept_and_other_parameters_replace_it(tmp_path):
    make_cohort(tmp_path, n_slides=1, size=SIZE)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    make_cohort(tmp_path, n_slides=1, size=SIZE)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == stamps
    before = contents(tmp_path)
    make_cohort(tmp_path, n_slides=1, size=SIZE, seed=5)
    assert contents(tmp_path) != before


def test_an_interrupted_cohort_is_finished_by_the_next_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cohort_lib, "_write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_cohort(tmp_path, n_slides=1, size=SIZE)
    with pytest.raises(UserError, match=r"has no generated cohort: .*manifest\.csv is missing"):
        load_cohort(tmp_path)
    assert len(make_cohort(tmp_path, n_slides=1, size=SIZE)) == len(load_cohort(tmp_path)) == 1


def test_a_half_replaced_cohort_is_not_loaded(tmp_path, monkeypatch):
    make_cohort(tmp_path / "new", n_slides=1, size=256, seed=5)
    make_cohort(tmp_path / "old", n_slides=1, size=256)
    with monkeypatch.context() as patch:
        patch.setattr(cohort_lib, "_generate_slides", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_cohort(tmp_path / "old", n_slides=1, size=256, seed=5)
    with pytest.raises(UserError, match=r"manifest\.csv is missing"):
        load_cohort(tmp_path / "old")
    make_cohort(tmp_path / "old", n_slides=1, size=256, seed=5)
    assert contents(tmp_path / "old") == contents(tmp_path / "new")


def test_remaining_slides_are_not_generated_after_a_failure(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "masks").mkdir()
    first, *others = cohort_lib._plan(tmp_path, 12)
    nowhere = dataclasses.replace(first, path=tmp_path / "nowhere" / "first.tiff")
    with pytest.raises(FileNotFoundError):
        cohort_lib._generate_slides([nowhere, *others], 0, 512, workers=1, show_progress=False)
    # The worker may have received a few slides before the failure was noticed.
    assert len(list((tmp_path / "slides").iterdir())) < len(others) / 2


def test_the_progress_bar_can_be_hidden(tmp_path, capfd):
    make_cohort(tmp_path / "a", n_slides=1, size=256)
    assert "Generating the demo cohort" in capfd.readouterr().err
    make_cohort(tmp_path / "b", n_slides=1, size=256, show_progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n_slides": 0}, "cannot have 0 slides. Set `n_slides` to 1 or more"),
        ({"size": 100}, "side of 100 pixels. Set `size` to a multiple of 8, at least 256"),
        ({"size": 300}, "side of 300 pixels. Set `size` to a multiple of 8, at least 256"),
    ],
)
def test_an_impossible_cohort_is_refused(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        make_cohort(tmp_path / "cohort", **options)
    assert not (tmp_path / "cohort").exists()


def test_every_centre_has_slides_in_every_split(tmp_path):
    slides = cohort_lib._plan(tmp_path, 24)
    counts = {
        (centre, split): sum(s.centre == centre and s.split == split for s in slides)
        for centre in CENTRES
        for split in ("train", "val", "test")
    }
    assert set(counts.values()) == {4, 1}
    assert len({s.path for s in slides}) == 24


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9)),
)
def test_a_level_has_the_rounded_means_of_the_one_below(plane):
    image = np.stack([plane, 255 - plane, plane // 2], axis=-1)
    height, width = (length // 2 for length in plane.shape)
    blocks = image[: height * 2, : width * 2].reshape(height, 2, width, 2, 3)
    expected = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    assert np.array_equal(cohort_lib._halve(image), expected)
