"""Whatever the world gives a parser, the outcome is a right answer or one line, in bounded time.

A short run is in the suite; `make fuzz` is a long one (FUZZ_EXAMPLES inputs each).
"""

import io
import json
import shutil
import types
import warnings
from unittest import mock

import pytest
import torch
from fuzz.conftest import EXAMPLES, fuzz
from helpers import save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from g2l_plugin.config_files import load_config
from g2l_plugin.datasets.manifest import ManifestTiles
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.report.sessions import read_sessions
from g2l_plugin.report.values import pool_values
from g2l_plugin.runs.checkpoints import read_checkpoint
from g2l_plugin.runs.record import RunRecord
from g2l_plugin.slides.cohort import choose_cohort
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide import slide_mpp
from g2l_plugin.slides.tile_grid import TileGrid

CELLS = st.one_of(
    st.sampled_from(["", "a.svs", "b.svs", "../a.svs", "a.png", "train", "val", "path", "label"]),
    st.sampled_from(["NA", "nan", "0", "-1", "1,024", "1e9", '"', "'", "=1+1"]),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
TABLES = st.builds(
    lambda separator, newline, rows, end: newline.join(separator.join(row) for row in rows) + end,
    st.sampled_from([",", "\t", ";", "|", " "]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.lists(CELLS, max_size=6), max_size=6),
    st.sampled_from(["", "\n", '"', "\x00", "\ufeff"]),
)
HEADS = st.sampled_from(
    [
        "",
        "slide\n",
        "path\n",
        "slide,patient,centre\n",
        "id\tfilename\tmd5\tsize\tstate\n1\ta.svs\tx\t0\tok\n",
        "path,label,split\na.png,x,train\n",
        "path,label,split,patient\na.png,x,train,P1\n",
        "\ufeffpath,label,split\na.png,x,train\n",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw, content):
    """Bytes that are cut, altered or extended at any place."""
    data = bytearray(content)
    kind = draw(st.sampled_from(["cut", "alter", "insert", "zeros"]))
    place = draw(st.integers(0, len(data)))
    if kind == "cut":
        return bytes(data[:place])
    new = draw(st.binary(min_size=1, max_size=16)) if kind != "zeros" else bytes(64)
    data[place : place + (0 if kind == "insert" else len(new))] = new
    return bytes(data)


def altered(draw, tree):
    """A JSON tree with one value replaced, removed or added, at any depth."""
    if isinstance(tree, dict) and tree and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(tree)))
        return tree | {key: altered(draw, tree[key])}
    if isinstance(tree, dict) and tree and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(tree)))
        return {name: value for name, value in tree.items() if name != key}
    if isinstance(tree, list) and tree and draw(st.booleans()):
        return [altered(draw, tree[0]), *tree[1:]]
    return draw(VALUES)


@fuzz
@given(head=HEADS, body=TABLES, suffix=st.sampled_from(["csv", "txt", "tsv"]))
def test_lists_of_slides(head, body, suffix, tmp_path, tried):
    for name in ("a.svs", "b.svs"):
        (tmp_path / name).touch()
    listed = tmp_path / f"list.{suffix}"
    listed.write_text(head + body, encoding="utf-8", errors="surrogatepass", newline="")
    chosen = tried(choose_cohort, tmp_path, listed)
    assert chosen is None or all(slide.slide for slide in chosen)


@fuzz
@given(head=HEADS, body=TABLES)
def test_manifests(head, body, tmp_path, tried):
    (tmp_path / "a.png").touch()
    (tmp_path / "manifest.csv").write_text(
        head + body, encoding="utf-8", errors="surrogatepass", newline=""
    )

    def read():
        tiles = ManifestTiles(str(tmp_path), split="train")
        tiles.prepare_data()
        tiles.setup()
        return len(tiles)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert tried(read) != 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("fuzz") / "model")


@fuzz
@given(data=st.data())
def test_folders_of_models(data, model, tmp_path, tried):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    if data.draw(st.booleans(), "config"):
        config = json.loads((model / "config.json").read_text())
        text = json.dumps(altered(data.draw, config))
        (folder / "config.json").write_text(text)
    else:
        weights = (model / "model.safetensors").read_bytes()
        head = data.draw(damaged(weights[:2000]))  # the header is what is parsed
        (folder / "model.safetensors").write_bytes(head + weights[2000:])
    encoder = tried(EncoderSource(f"local-dir:{folder}").load)
    assert encoder is None or (encoder.embedding_dim > 0 and encoder.std.min() > 0)


FILES = {
    "results.json": {"metrics": {"val": [{"val/KNNAccuracy": {"values": [0.5]}}], "test": []}},
    "run_0/metrics/facts.json": {"task": "bach", "classes": ["a", "b"], "model": {"name": "x"}},
    "run_0/metrics/val.json": {
        "values": {"KNNAccuracy": 0.5},
        "undefined": {"RobustnessIndex": "one centre"},
        "details": {"intervals": {"KNNAccuracy": {"low": 0.4, "high": 0.6}}},
    },
}


@fuzz
@given(data=st.data(), chosen=st.sampled_from(sorted(FILES)))
def test_results(data, chosen, tmp_path, tried):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    text = json.dumps(altered(data.draw, FILES[chosen])).encode()
    if data.draw(st.booleans(), "bytes"):
        text = data.draw(damaged(text))
    (tmp_path / chosen).write_bytes(text)

    def report():
        return pool_values(read_sessions([str(tmp_path)]))

    tried(report)


@pytest.fixture(scope="module")
def checkpoint():
    buffer = io.BytesIO()
    state = {"student.model.weight": torch.arange(64.0)}
    torch.save({"state_dict": state, "global_step": 7, "g2l": {"loss": "x"}}, buffer)
    return buffer.getvalue()


@fuzz
@given(data=st.data())
def test_checkpoints(data, checkpoint, tmp_path, tried):
    path = tmp_path / "last.ckpt"
    path.write_bytes(data.draw(damaged(checkpoint)))
    found = tried(read_checkpoint, path)
    if found is not None:  # what is not in the file is no record
        tried(RunRecord.from_checkpoint, found, str(path))


@settings(fuzz, max_examples=max(5, EXAMPLES // 8))  # a config takes a tenth of a second
@given(
    name=st.sampled_from(["MAX_STEPS", "LR_VALUE", "BATCH_SIZE", "TEACHER", "CANCER", "WIDTHS"]),
    value=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20),
)
def test_variables_of_configs(name, value, tried):
    with mock.patch.dict("os.environ", {"CANCER": "lung", name: value}):
        tried(load_config, "g2l")


PROPERTIES = st.dictionaries(
    st.sampled_from(["openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power"]),
    st.floats().map(str) | st.text(max_size=8) | st.sampled_from(["0.25", "0,25", "40", "inch"]),
)


@fuzz
@given(
    properties=PROPERTIES,
    overwrite=st.none() | st.floats(0.1, 2),
    levels=st.lists(st.floats(1, 64), max_size=3),
)
def test_properties_of_slides(properties, overwrite, levels, tmp_path, tried):
    downsamples = (1.0, *sorted(levels))
    slide = types.SimpleNamespace(
        properties=properties, level_downsamples=downsamples, level_count=len(downsamples)
    )
    mpp = tried(slide_mpp, slide, tmp_path / "a.svs", overwrite)
    assert mpp is None or 0 < mpp < 1e3


@settings(fuzz, max_examples=max(5, EXAMPLES // 8))  # each starts a process, which may crash
@given(data=st.data())
def test_slides(data, write_slide, tmp_path, tried):
    whole = tmp_path / "whole" / "a.tiff"
    if not whole.exists():
        write_slide(whole, size=512)
    content = whole.read_bytes()
    head = data.draw(st.booleans(), "head")
    part = content[:600] if head else content[-1500:]  # the tags are at both ends
    changed = data.draw(damaged(part))
    folder = tmp_path / "slides"
    for used in (folder, tmp_path / "index"):
        shutil.rmtree(used, ignore_errors=True)
    folder.mkdir()
    (folder / "a.tiff").write_bytes(changed + content[600:] if head else content[:-1500] + changed)
    grid = TileGrid(128, 128, min_sharpness=0)
    index = tried(build_index, tmp_path / "index", grid, folder, workers=1)
    assert index is None or len(index.records) == 1
