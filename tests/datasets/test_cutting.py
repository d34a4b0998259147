from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from PIL import Image

from g2l_plugin.datasets.cutting import Region, Rules, choose_tiles, count_pixels, cut_regions
from g2l_plugin.errors import UserError

REGION = Region("slide", Path("slide.png"), {}, {})


def read(region, rules):
    """Yields one tile for each label in the region's facts."""
    if "broken" in region.name:
        raise UserError(f"{region.image} is broken")
    with (region.image.parent / "reads.txt").open("a") as file:
        file.write(f"{region.name}\n")
    for number, label in enumerate(region.facts["labels"].split()):
        yield number * rules.size, 7, label, np.full((rules.size, rules.size, 3), number, np.uint8)


@pytest.fixture
def regions(tmp_path):
    made = []
    for name in ("one", "two", "none"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        labels = {"one": "a b", "two": "b", "none": ""}[name]
        facts = {"patient": name, "labels": labels}
        made.append(Region(name, tmp_path / f"{name}.png", {}, facts))
    return made


def reads(tmp_path):
    return sorted((tmp_path / "reads.txt").read_text().split())


def test_tiles_are_written_and_listed_in_the_order_of_the_regions(regions, tmp_path):
    table = cut_regions(read, regions, Rules(8), tmp_path / "out", workers=2)
    paths = ["tiles/one/0_7.png", "tiles/one/8_7.png", "tiles/two/0_7.png"]
    assert table["path"].tolist() == paths
    assert table["label"].tolist() == ["a", "b", "b"]
    assert table["patient"].tolist() == ["one", "one", "two"]
    assert (
        np.asarray(Image.open(tmp_path / "out" / paths[1])).tolist() == np.ones((8, 8, 3)).tolist()
    )


def test_regions_are_cut_again_only_if_the_rules_change(regions, tmp_path):
    first = cut_regions(read, regions, Rules(8), tmp_path / "out", workers=1)
    (tmp_path / "out" / "manifest.csv").touch()
    again = cut_regions(read, regions, Rules(8), tmp_path / "out", workers=1)
    assert again.equals(first) and reads(tmp_path) == ["none", "one", "two"]
    # An old manifest must not list tiles that are cut again.
    assert not (tmp_path / "out" / "manifest.csv").exists()
    table = cut_regions(read, regions, Rules(4), tmp_path / "out", workers=1)
    assert "tiles/one/4_7.png" in set(table["path"]) and len(reads(tmp_path)) == 6
    assert not (tmp_path / "out" / "tiles" / "one" / "8_7.png").exists()


def test_an_interrupted_run_continues(regions, tmp_path):
    cut_regions(read, regions[:1], Rules(8), tmp_path / "out", workers=1)
    assert len(cut_regions(read, regions, Rules(8), tmp_path / "out", workers=1)) == 3
    assert reads(tmp_path) == ["none", "one", "two"]


def test_unreadable_regions_are_left_out_and_named(regions, tmp_path):
    (tmp_path / "broken.png").touch()
    regions = [*regions, Region("broken", tmp_path / "broken.png", {}, {})]
    with pytest.raises(
        UserError, match="1 of 4 regions cannot be read, more than the allowed 5%.*is broken"
    ):
        cut_regions(read, regions, Rules(8), tmp_path / "out", workers=1)
    warnings = []
    handler = logger.add(warnings.append, level="WARNING")
    assert len(cut_regions(read, regions, Rules(8), tmp_path / "out", 1, max_lost=0.5)) == 3
    logger.remove(handler)
    assert "1 of 4 regions cannot be read and are left out" in warnings[0]
    assert "broken.png is broken" in warnings[0]
    assert not list((tmp_path / "out" / "tiles").glob("*broken*"))


def test_no_tile_at_all_is_an_error(regions, tmp_path):
    with pytest.raises(
        UserError, match="In no tile of 8 x 8 pixels does one class cover a share of 0.75"
    ):
        cut_regions(read, regions[2:], Rules(8), tmp_path / "out", workers=1)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"min_purity": 0}, {"min_purity": 1.1}])
def test_rules_without_a_possible_tile_are_refused(wrong):
    with pytest.raises(UserError, match="The tile size is .* and the purity .*Expected"):
        Rules(**wrong)


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.data())
def test_counts_equal_those_of_a_loop(height, width, step, data):
    seed, cut = data.draw(st.integers(0, 999)), data.draw(st.integers(1, 9))
    marked = np.random.default_rng(seed).random((height, width)) < 0.5
    rows, columns = np.arange(height) // step, np.arange(width) // step
    counts = np.zeros((rows[-1] + 1, columns[-1] + 1), np.int64)
    for top in range(0, height, cut):  # in parts, as read from a file
        part = slice(top, top + cut)
        count_pixels(marked[part], rows[part], columns, counts)
    for row, column in np.ndindex(counts.shape):
        area = marked[row * step : (row + 1) * step, column * step : (column + 1) * step]
        assert counts[row, column] == area.sum()


def test_only_tiles_covered_by_one_class_are_chosen():
    shares = {
        "a": np.array([[0.8, 0.5], [0.0, 0.75]]),
        "b": np.array([[0.1, 0.5], [1.0, 0.25]]),
    }
    assert choose_tiles(shares, REGION, Rules(8)) == [(0, 0, "a"), (1, 0, "b"), (1, 1, "a")]
    assert choose_tiles(shares, REGION, Rules(8, min_purity=0.9)) == [(1, 0, "b")]


def test_the_seed_decides_which_of_many_tiles_are_kept():
    shares = {"a": np.ones((10, 10)), "b": np.zeros((10, 10))}
    shares["a"][0, :5], shares["b"][0, :5] = 0, 1
    chosen = [choose_tiles(shares, REGION, Rules(8, max_tiles=7, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    for tiles in chosen:
        assert sorted(label for *_, label in tiles) == ["a"] * 7 + ["b"] * 5
        assert len(set(tiles)) == 12
