"""Exports of a student by its name on the Hub, which a loopback server stands for."""

import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import save_tiny_model
from hub_server import COMMIT, connect_client, serve_hub
from huggingface_hub import constants
from PIL import Image

from g2l_plugin import cli
from g2l_plugin.encoders.load import load_encoder

TOOLS = os.path.join(os.path.dirname(__file__), "other_tools.py")
TILES = "{init_args: {target_mpp: 0.25}}"


@pytest.fixture
def student(tmp_path):
    """The folder of a student with its training config, as a run publishes it."""
    folder = save_tiny_model(tmp_path / "tiny")
    config = f"data: {{init_args: {{datasets: {{train: {TILES}}}}}}}\n"
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.fixture
def hub(student, tmp_path, monkeypatch):
    """A hub that has the student as org/tiny, which the client talks to."""
    with serve_hub({"org/tiny": student}) as hub:
        connect_client(hub, tmp_path, monkeypatch)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def tile():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def expected(student, tile):
    """The embedding of the tile, from the folder that was put on the Hub."""
    encoder = load_encoder(f"local-dir:{student}").eval()
    with torch.no_grad():
        return encoder(torch.from_numpy(tile).permute(2, 0, 1)[None] / 255).numpy()


def export(name, tool, out):
    return cli.main(["export", name, "--for", tool, "--output", str(out)])


def test_a_python_file_names_the_commit_and_loads_it_from_the_hub(hub, tile, expected, tmp_path):
    for name in ("hf-hub:org/tiny", "org/tiny", "org/tiny@main"):
        out = tmp_path / name.replace("/", "_").replace(":", "_")
        assert export(name, "lazyslide", out) == 0
        assert sorted(path.name for path in out.iterdir()) == [
            "export.json",
            "lazyslide_student.py",
        ]
        text = (out / "lazyslide_student.py").read_text()
        assert "org/tiny" in text and COMMIT in text
        record = json.loads((out / "export.json").read_text())
        assert record["hub"] == ["org/tiny", COMMIT]
        assert record["student"]["mpp"] == 0.25  # of the training config there
    Image.fromarray(tile).save(tmp_path / "tile.png")
    environment = {
        "PATH": os.environ["PATH"],
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "theirs"),
        "HF_HUB_DISABLE_XET": "1",
    }
    file = f"lazyslide={out / 'lazyslide_student.py'}"
    command = [sys.executable, TOOLS, tmp_path / "tile.png", tmp_path, file]
    subprocess.run(command, env=environment, check=True, timeout=120)
    failed = tmp_path / "lazyslide.txt"
    assert not failed.is_file(), failed.read_text()
    np.testing.assert_allclose(np.load(tmp_path / "lazyslide.npy"), expected, atol=1e-4)


def test_onnx_and_torchscript_from_the_hub_are_the_student(hub, tile, expected, tmp_path, capsys):
    for tool in ("onnx", "torchscript"):
        assert export("hf-hub:org/tiny", tool, tmp_path / tool) == 0
        said = capsys.readouterr()
        assert "is assumed" not in said.err
        lines = said.out.partition("\n")[2]
        names = {"np": np, "onnxruntime": onnxruntime, "torch": torch}
        names["tiles"] = tile[None] if tool == "onnx" else torch.from_numpy(tile[None])
        with torch.no_grad():
            exec(lines, names)
        np.testing.assert_allclose(np.asarray(names["embeddings"]), expected, atol=1e-4)


def test_what_was_exported_once_is_exported_without_a_connection(hub, tmp_path, monkeypatch):
    assert export("org/tiny", "stamp", tmp_path / "first") == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.served.clear()
    assert export("org/tiny", "stamp", tmp_path / "second") == 0
    assert not hub.served
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second


def test_a_student_without_a_training_config_has_an_assumed_resolution(hub, tmp_path, capsys):
    for files in hub.repos["org/tiny"].commits.values():
        del files["config.yaml"]
    assert export("org/tiny", "stamp", tmp_path / "out") == 0
    assert "hf-hub:org/tiny does not say the resolution" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("org/nothing", "no model org/nothing"), ("org/tiny@v9", "no revision 'v9'")],
)
def test_what_the_hub_lacks_is_told_in_one_line(name, said, hub, tmp_path, capsys):
    assert export(name, "timm", tmp_path / "out") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out").exists()
