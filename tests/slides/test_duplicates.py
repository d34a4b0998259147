import shutil

import numpy as np
import openslide
import pytest
import tifffile

from g2l_plugin.slides import duplicates
from g2l_plugin.slides.index import open_index
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.tile_grid import TileGrid

GRID = TileGrid(64, 64, min_sharpness=0)


def write_tissue(path, seed, lowest):
    """Writes a slide full of tissue, uncompressed, above a lowest level that is given."""
    rng = np.random.default_rng(seed)
    image = np.array([214, 120, 170]) + rng.integers(-30, 30, (512, 512, 1))
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    options |= {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate([image.astype(np.uint8), image[::8, ::8], *lowest]):
            writer.write(level.astype(np.uint8), subfiletype=int(number > 0), **options)
    return path


@pytest.fixture
def slides(tmp_path):
    """Two slides of one size and quickhash, as their lowest level is the same, and a copy."""
    one_pixel = [np.full((1, 1, 3), 245, np.uint8)]
    paths = [write_tissue(tmp_path / "slides" / f"{n}.tiff", n, one_pixel) for n in (1, 2)]
    hashes = {openslide.OpenSlide(p).properties["openslide.quickhash-1"] for p in paths}
    assert len(hashes) == 1 and len({path.stat().st_size for path in paths}) == 1
    shutil.copy(paths[0], paths[0].with_name("copy.tiff"))
    return tmp_path / "slides"


def problems(index):
    return {s.slide: r.problem for s, r in zip(index.cohort, index.records, strict=True)}


def test_only_slides_of_the_same_bytes_are_duplicates(tmp_path, slides):
    index = build_index(tmp_path / "index", GRID, slides)
    assert problems(index) == {"1.tiff": "", "2.tiff": "", "copy.tiff": "duplicate"}


def test_a_copy_without_a_quickhash_is_a_duplicate(tmp_path, slides, monkeypatch):
    name = "PROPERTY_NAME_QUICKHASH1"
    monkeypatch.setattr(openslide, name, "none")  # as OpenSlide gives none for large levels
    index = build_index(tmp_path / "index", GRID, slides)
    assert not index.records[0].quickhash
    assert problems(index) == {"1.tiff": "", "2.tiff": "", "copy.tiff": "duplicate"}


def test_only_slides_that_may_be_the_same_are_read_and_only_once(tmp_path, slides, monkeypatch):
    write_tissue(slides / "other.tiff", 3, [])
    read = []
    hash_file = duplicates._hash_file
    monkeypatch.setattr(duplicates, "_hash_file", lambda p: read.append(p.name) or hash_file(p))
    index = build_index(tmp_path / "index", GRID, slides)
    assert read == ["1.tiff", "2.tiff", "copy.tiff"]
    assert open_index(tmp_path / "index", GRID, slides).records == index.records
    assert len(read) == 3
    write_tissue(slides / "copy.tiff", 4, [np.full((1, 1, 3), 245, np.uint8)])
    assert set(problems(build_index(tmp_path / "index", GRID, slides)).values()) == {""}


def test_duplicates_are_found_in_an_index_that_kept_them(tmp_path, slides):
    kept = build_index(tmp_path / "index", GRID, slides, keep_duplicates=True)
    assert set(problems(kept).values()) == {""}
    assert problems(open_index(tmp_path / "index", GRID, slides))["copy.tiff"] == "duplicate"


def test_a_file_that_cannot_be_read_is_no_duplicate_and_told(tmp_path, warned):
    assert duplicates._hash_file(tmp_path) == ""
    assert "Is a directory" in warned[0]
