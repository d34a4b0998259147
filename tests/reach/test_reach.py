"""Exports in the real tools: `make reach`, which is not in the default suite.

Each tool has an environment of its own: REACH_PYTHONS names them, e.g.
`REACH_PYTHONS="lazyslide=envs/lazyslide/bin/python atlaspatch=..."`; REACH_TIMMS names folders of
timm versions, which go first on the path, e.g. `REACH_TIMMS="envs/timm-0.9.16 envs/timm-1.0.16"`.
What is not named is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
import tifffile
import torch
from helpers import save_tiny_model
from PIL import Image
from sklearn.linear_model import LogisticRegression

from g2l_plugin.embedding.embed_slides import embed_slides
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.publishing.export.export import PYTHON_TOOLS, export_for
from g2l_plugin.publishing.export.torchscript import fit_classifier
from g2l_plugin.slides.proof import prove
from g2l_plugin.slides.reader import SlideReader
from g2l_plugin.slides.slide import plan_reads, slide_mpp

TOOLS = Path(__file__).parents[1] / "publishing" / "other_tools.py"
SLIDES = Path(__file__).with_name("whole_slides.py")
PYTHONS = dict(part.split("=") for part in os.environ.get("REACH_PYTHONS", "").split())
TIMMS = os.environ.get("REACH_TIMMS", "").split()
CLEAN = {"PATH": os.environ["PATH"], "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A student's folder, a tile's file, and what `load_encoder` makes of the tile."""
    folder = save_tiny_model(tmp_path_factory.mktemp("students") / "tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "tile.png")
    encoder = load_encoder(f"local-dir:{folder}").eval()
    with torch.no_grad():
        embedding = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    return folder, folder / "tile.png", embedding.numpy()


@pytest.mark.parametrize("tool", PYTHON_TOOLS)
def test_the_real_tool_takes_the_file(tool, tiny, tmp_path):
    if tool not in PYTHONS:
        pytest.skip(f"REACH_PYTHONS names no python with {tool}")
    folder, tile, expected = tiny
    export = export_for(f"local-dir:{folder}", tool, tmp_path / "out")
    file = export.folder / f"{tool}_student.py"
    subprocess.run(
        [PYTHONS[tool], TOOLS, tile, tmp_path, f"{tool}={file}"],
        env=CLEAN | {"REAL": "1", "PYTHONPATH": os.environ.get("REACH_PATH", "")},
        check=True,
    )
    failed = tmp_path / f"{tool}.txt"
    assert not failed.is_file(), failed.read_text()
    np.testing.assert_allclose(np.load(tmp_path / f"{tool}.npy"), expected, atol=1e-4)


WHOLE_SLIDES = ("lazyslide", "trident", "wsinfer")
LABELS = np.arange(60) % 3
VALUES = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
VALUES[np.arange(60), LABELS] += 3
"""Embeddings that WSInfer's classifier is fitted on: 32 features, three classes."""


def make_slide(path, mpp=0.5):
    """Blurred purple noise on white."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(90, 200, (48, 48, 3), np.uint8)
    coarse[..., 1] //= 2
    tissue = Image.fromarray(coarse).resize((384, 384), Image.Resampling.BICUBIC)
    pixels = np.full((640, 640, 3), 245, np.uint8)
    pixels[128:512, 128:512] = np.asarray(tissue)
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.fixture(params=["made", "real"])
def slide(request, tmp_path):
    """A slide of 0.5 um/px, or a scanner's of 0.499 in JPEG."""
    if request.param == "made":
        return make_slide(tmp_path / "made.tiff")
    return request.getfixturevalue("real_slides") / "CMU-1-Small-Region.svs"


def embed_in(tool, folder, slide, work, mpp=0.5, tiles=None):
    """What a tool finds on a slide: `xy` (N, 2) and `features` (N, D)."""
    if tool not in PYTHONS:
        pytest.skip(f"REACH_PYTHONS names no python with {tool}")
    train = Embeddings(VALUES, LABELS, np.arange(60).astype(str))

    def fit(student, encoder):
        return fit_classifier(student, encoder, train, None, ["a", "b", "c"])

    work.mkdir()
    export = export_for(
        f"local-dir:{folder}",
        tool,
        work / "exported",
        mpp=mpp,
        fit=fit if tool == "wsinfer" else None,
    )
    out = work / "found.npz"
    subprocess.run(
        [PYTHONS[tool], SLIDES, tool, export.folder, slide, out, json.dumps(tiles or {})],
        env=CLEAN | {"HOME": str(work)},
        check=True,
    )
    return np.load(out)


def embed_tiles(folder, tiles):
    """What `load_encoder` makes of tiles, uint8 (N, 3, H, W)."""
    with torch.inference_mode():
        return load_encoder(f"local-dir:{folder}").eval()(torch.from_numpy(tiles) / 255).numpy()


def read_tiles(slide, xy, mpp=0.5, direct=True):
    """What this package reads at corners that a tool chose, uint8 (N, 3, 32, 32)."""
    with openslide.OpenSlide(slide) as handle:
        plan = plan_reads(handle, slide, slide_mpp(handle, slide, None), mpp, (32, 32))
    if direct:
        plan, problem = prove(slide, plan, xy)
        assert bool(problem) == (slide.name == "made.tiff"), problem  # its tiles are uncompressed
    reader = SlideReader([slide], [plan], (32, 32), max_open_slides=1)
    tiles = np.empty((len(xy), 3, 32, 32), np.uint8)
    for tile, (x, y) in zip(tiles, xy.tolist(), strict=True):
        reader.read(0, x, y, tile)
    return tiles


def probabilities(embeddings):
    """scikit-learn's, of the probe that WSInfer's file has."""
    return (
        LogisticRegression(C=32 * 3 / 100, max_iter=1000)
        .fit(VALUES, LABELS)
        .predict_proba(embeddings)
    )


@pytest.mark.parametrize("tool", WHOLE_SLIDES)
def test_the_real_tool_embeds_a_whole_slide(tool, tiny, slide, tmp_path):
    found = embed_in(tool, tiny[0], slide, tmp_path / "work")
    with openslide.OpenSlide(slide) as handle:
        # Where there is no slide, the others have black pixels and this package white ones.
        inside = (found["xy"] + 32 <= handle.dimensions).all(axis=1)
    xy, features = found["xy"][inside], found["features"][inside]
    assert len(xy) > 30
    expected = embed_tiles(tiny[0], read_tiles(slide, xy))
    if tool == "wsinfer":
        expected = probabilities(expected)
    if tool == "lazyslide":
        assert inside.all()
    assert features.std(axis=0).min() > 0.01  # the tiles differ
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_lazyslide_gives_the_features_of_g2l_embed(tiny, slide, tmp_path):
    found = embed_in("lazyslide", tiny[0], slide, tmp_path / "work", tiles={"tissue_key": None})
    embed_slides(
        f"local-dir:{tiny[0]}", slide, tmp_path / "ours", tile_size=32, min_sharpness=0, workers=0
    )
    with h5py.File(tmp_path / "ours" / f"{slide.stem}.h5") as file:
        xy, features = file["coords"][:], file["features"][:]
    assert len(xy) > 30
    theirs = dict(zip(map(tuple, found["xy"].tolist()), found["features"], strict=True))
    expected = np.stack([theirs[corner] for corner in map(tuple, xy.tolist())])
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_lazyslide_leaves_the_resizing_to_the_student(tiny, slide, tmp_path):
    """Its own is another filter; with tiles of level 0, the exported transform does it."""
    folder, work = tiny[0], tmp_path / "work"
    own = embed_in("lazyslide", folder, slide, tmp_path / "own", mpp=1.0)
    expected = embed_tiles(folder, read_tiles(slide, own["xy"], 1.0, direct=False))
    assert np.abs(own["features"] - expected).max() > 1e-3
    left = embed_in("lazyslide", folder, slide, work, tiles={"tile_px": 64, "mpp": None})
    assert len(left["xy"]) > 8
    expected = embed_tiles(folder, read_tiles(slide, left["xy"], 1.0, direct=False))
    np.testing.assert_allclose(left["features"], expected, atol=1e-4)


def test_wsinfer_resizes_with_the_filter_of_the_reader(tiny, slide, tmp_path):
    """To 1e-3, since Pillow and torch round differently; bilinear would be 0.003 off."""
    found = embed_in("wsinfer", tiny[0], slide, tmp_path / "work", mpp=1.0)
    with openslide.OpenSlide(slide) as handle:
        inside = (found["xy"] + 65 <= handle.dimensions).all(axis=1)
    xy = found["xy"][inside]
    assert len(xy) > 8
    expected = probabilities(embed_tiles(tiny[0], read_tiles(slide, xy, 1.0, direct=False)))
    np.testing.assert_allclose(found["features"][inside], expected, atol=1e-3)


def test_lazyslide_takes_a_slide_a_little_coarser_than_the_student(tiny, tmp_path):
    slide = make_slide(tmp_path / "made.tiff", mpp=0.504)
    found = embed_in("lazyslide", tiny[0], slide, tmp_path / "work", tiles={"slide_mpp": 0.5})
    expected = embed_tiles(tiny[0], read_tiles(slide, found["xy"]))
    np.testing.assert_allclose(found["features"], expected, atol=1e-4)


@pytest.mark.parametrize("path", TIMMS or [None])
def test_an_old_timm_gives_the_same(path, tiny, tmp_path):
    if path is None:
        pytest.skip("REACH_TIMMS names no folder with another timm")
    folder, tile, expected = tiny
    export = export_for(f"local-dir:{folder}", "timm", tmp_path / "out")
    code = "\n".join(
        [
            "import json, sys, timm, torch, numpy as np",
            "from PIL import Image",
            *export.lines.splitlines()[1:],
            "data = timm.data.resolve_model_data_config(model)",
            "image = timm.data.create_transform(**data)(Image.open(sys.argv[1]))",
            "np.save(sys.argv[2], model.eval()(image[None]).detach().numpy())",
            "print(timm.__version__)",
        ]
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tile, tmp_path / "got.npy"],
        env=CLEAN | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in Path(path).resolve().name, result.stdout
    np.testing.assert_allclose(np.load(tmp_path / "got.npy"), expected, atol=1e-4)
