"""Exports in the real tools: `make reach`, which is not in the default suite.

Each tool has an environment of its own: REACH_PYTHONS names them, e.g.
`REACH_PYTHONS="lazyslide=envs/lazyslide/bin/python atlaspatch=..."`; REACH_TIMMS names folders of
timm versions, which go first on the path, e.g. `REACH_TIMMS="envs/timm-0.9.16 envs/timm-1.0.16"`.
What is not named is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import torch
from helpers import save_tiny_model
from PIL import Image
from sklearn.linear_model import LogisticRegression

from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.publishing.export.export import PYTHON_TOOLS, export_for
from g2l_plugin.publishing.export.torchscript import fit_classifier

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


WHOLE_SLIDES = ("lazyslide", "wsinfer")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Blurred purple noise on white, as a slide of 0.5 um/px."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(90, 200, (12, 12, 3), np.uint8)
    coarse[..., 1] //= 2
    tissue = Image.fromarray(coarse).resize((384, 384), Image.Resampling.BICUBIC)
    pixels = np.full((640, 640, 3), 245, np.uint8)
    pixels[128:512, 128:512] = np.asarray(tissue)
    path = tmp_path_factory.mktemp("slides") / "slide.tiff"
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.mark.parametrize("tool", WHOLE_SLIDES)
def test_the_real_tool_embeds_a_whole_slide(tool, tiny, slide, tmp_path):
    if tool not in PYTHONS:
        pytest.skip(f"REACH_PYTHONS names no python with {tool}")
    folder = tiny[0]
    labels = np.arange(60) % 3
    values = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    values[np.arange(60), labels] += 3
    train = Embeddings(values, labels, np.arange(60).astype(str))

    def fit(student, encoder):
        return fit_classifier(student, encoder, train, None, ["a", "b", "c"])

    export = export_for(
        f"local-dir:{folder}",
        tool,
        tmp_path / "out",
        mpp=0.5,
        fit=fit if tool == "wsinfer" else None,
    )
    subprocess.run(
        [PYTHONS[tool], SLIDES, tool, export.folder, slide, tmp_path / "found.npz"],
        env=CLEAN | {"HOME": str(tmp_path)},
        check=True,
    )
    found = np.load(tmp_path / "found.npz")
    assert len(found["xy"]) > 30
    with openslide.OpenSlide(str(slide)) as handle:
        tiles = [np.asarray(handle.read_region(xy, 0, (32, 32)))[..., :3] for xy in found["xy"]]
    images = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = load_encoder(f"local-dir:{folder}").eval()(images).numpy()
    if tool == "wsinfer":
        oracle = LogisticRegression(C=32 * 3 / 100, max_iter=1000).fit(values, labels)
        expected = oracle.predict_proba(expected)
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
