import dataclasses

import numpy as np
import pytest

from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.robustness import RobustnessIndex

croma = pytest.importorskip("croma")

from g2l_plugin.metrics.croma import CRoMa  # noqa: E402


@pytest.fixture
def tiles():
    rng = np.random.default_rng(0)
    labels, centres = rng.integers(0, 3, 150), rng.integers(0, 3, 150)
    values = rng.normal(size=(150, 8)).astype(np.float32)
    values[np.arange(150), labels] += 2
    values[np.arange(150), 3 + centres] += 1
    names = np.array([f"tile {number}" for number in range(150)])
    slides = np.array([f"slide {number // 3}" for number in range(150)])
    groups = {"centre": np.array(list("xyz"))[centres], "slide": slides}
    return Embeddings(values, labels, names, groups)


def margins(tiles, m, own):
    """The margin of each tile by its definition, in a loop."""
    unit = tiles.values / np.linalg.norm(tiles.values, axis=1, keepdims=True)
    distances, centres = 1 - unit @ unit.T, tiles.groups["centre"]
    found = []
    for tile in range(len(tiles.values)):
        others = own != own[tile]
        same_class = (tiles.labels == tiles.labels[tile]) & others
        same_centre = (centres == centres[tile]) & others
        so = np.sort(distances[tile][same_class & ~same_centre])[:m].mean()
        os = np.sort(distances[tile][~same_class & same_centre])[:m].mean()
        found.append((os - so) / (os + so))
    return np.array(found)


@pytest.mark.parametrize("m", [1, 5])
def test_the_values_are_those_of_the_definition(tiles, m):
    expected = margins(tiles, m, tiles.groups["slide"])
    result = CRoMa(m).compute(tiles, tiles)
    assert result.values["CRoMa"] == pytest.approx(np.median(expected), abs=1e-5)
    assert result.values["CRoMaTail"] == pytest.approx(np.sort(expected)[:15].mean(), abs=1e-5)
    assert result.values["CRoMaConfounded"] == pytest.approx((expected <= 0).mean())
    ends = result.details["intervals"]["CRoMa"]
    assert ends["low"] < result.values["CRoMa"] < ends["high"]


def test_without_slides_only_the_tile_itself_is_left_out(tiles):
    alone = dataclasses.replace(tiles, groups={"centre": tiles.groups["centre"]})
    expected = np.median(margins(tiles, 5, tiles.names))
    assert CRoMa().compute(alone, alone).values["CRoMa"] == pytest.approx(expected, abs=1e-5)


def test_their_robustness_index_is_ours(tiles):
    frame = croma_manifest(tiles)
    theirs = croma.RI.compute(tiles.values, frame, k_candidates=[10], confounder_column="center")
    ours = RobustnessIndex(k=[10], exclude=("slide",), device="cpu").compute(tiles, tiles)
    assert ours.values["PathoROBIndex/k=10"] == pytest.approx(theirs.value, abs=1e-6)


def croma_manifest(tiles):
    import pandas as pd

    return pd.DataFrame(
        {
            "sample_id": tiles.names,
            "image_path": tiles.names,
            "label": tiles.labels.astype(str),
            "group_id": tiles.groups["slide"],
            "center": tiles.groups["centre"],
        }
    )


def test_what_is_undefined_says_why(tiles):
    one = dataclasses.replace(tiles, groups={"centre": np.full(150, "x")})
    assert "same centre" in CRoMa().compute(one, one).undefined["CRoMa"]
    few = CRoMa(m=60).compute(tiles, tiles)
    assert set(few.undefined) == {"CRoMa", "CRoMaTail", "CRoMaConfounded"} and not few.values
    with pytest.raises(UserError, match="at least 1 neighbour"):
        CRoMa(m=0)


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "croma", None)
    with pytest.raises(UserError, match=r"pip install 'g2l-plugin\[croma\]'"):
        CRoMa()
