"""Each export is used as its tool uses it, where this package cannot be imported."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from helpers import save_tiny_model
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision import transforms

from g2l_plugin import cli
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.publishing.export.export import PYTHON_TOOLS, export_for
from g2l_plugin.publishing.export.student import load_student
from g2l_plugin.publishing.export.torchscript import fit_classifier, write_torchscript
from g2l_plugin.slides.slide import as_tile

TOOLS = Path(__file__).with_name("other_tools.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A student's folder, a tile, and what `load_encoder` makes of the tile."""
    folder = save_tiny_model(tmp_path_factory.mktemp("students") / "tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoder = load_encoder(f"local-dir:{folder}").eval()
    with torch.no_grad():
        embedding = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    return folder, Image.fromarray(pixels), embedding


@pytest.fixture(scope="module")
def embedded(tiny, tmp_path_factory):
    """The folder of what each tool made of the tile, all in one process."""
    folder, tile, _ = tiny
    root = tmp_path_factory.mktemp("tools")
    tile.save(root / "tile.png")
    files = []
    for tool in PYTHON_TOOLS:
        export = export_for(f"local-dir:{folder}", tool, root / "new" / tool)
        text = (export.folder / f"{tool}_student.py").read_text()
        assert export.lines.splitlines()[-1].strip() in text
        # Copied elsewhere, it has all that it needs.
        moved = export.folder.rename(root / tool)
        files.append(f"{tool}={moved / f'{tool}_student.py'}")
    subprocess.run(
        [sys.executable, TOOLS, root / "tile.png", root, *files],
        env={"PATH": os.environ["PATH"], "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        check=True,
        timeout=300,
    )
    return root


@pytest.mark.parametrize("tool", PYTHON_TOOLS)
def test_the_tools_own_way_gives_the_students_embedding(tool, tiny, embedded):
    failed = embedded / f"{tool}.txt"
    assert not failed.is_file(), failed.read_text()
    np.testing.assert_allclose(np.load(embedded / f"{tool}.npy"), tiny[2].numpy(), atol=1e-4)


def test_timm_alone_loads_the_folder_both_ways(tiny, tmp_path):
    folder, tile, expected = tiny
    export = export_for(f"local-dir:{folder}", "timm", tmp_path / "out")
    names = {"timm": timm, "json": json}
    first, *rest = export.lines.splitlines()
    for lines in (first, "\n".join(rest)):
        exec(lines, names)
        model = names["model"].eval()
        data = timm.data.resolve_model_data_config(model)
        image = timm.data.create_transform(**data, is_training=False)(tile)
        with torch.no_grad():
            torch.testing.assert_close(model(image[None]), expected, atol=1e-4, rtol=0)


def test_onnx_and_torchscript_give_it_by_the_printed_lines(tiny, tmp_path):
    folder, tile, expected = tiny
    tiles = np.array(tile)[None].repeat(3, 0)
    names = {"np": np, "onnxruntime": onnxruntime, "tiles": tiles}
    exec(export_for(f"local-dir:{folder}", "onnx", tmp_path / "onnx").lines, names)
    np.testing.assert_allclose(names["embeddings"][2:], expected.numpy(), atol=1e-4)
    names = {"torch": torch, "tiles": torch.from_numpy(tiles)}
    exec(export_for(f"local-dir:{folder}", "torchscript", tmp_path / "script").lines, names)
    torch.testing.assert_close(names["embeddings"][2:], expected, atol=1e-4, rtol=0)


def labelled(width, n_classes, n=60):
    generator = np.random.default_rng(n_classes)
    labels = np.arange(n) % n_classes
    values = generator.normal(size=(n, width)).astype(np.float32)
    values[np.arange(n), labels] += 3
    return Embeddings(values, labels, np.arange(n).astype(str))


@pytest.mark.parametrize("classes", [["normal", "tumour"], ["a", "b", "c"]])
def test_wsinfer_gives_the_probabilities_of_the_probe(classes, tiny, tmp_path):
    folder, tile, expected = tiny
    train = labelled(32, len(classes))
    export_for(
        f"local-dir:{folder}",
        "wsinfer",
        tmp_path / "out",
        fit=lambda student, encoder: fit_classifier(student, encoder, train, None, classes),
    )
    # As WSInfer reads it: github.com/SBU-BMI/wsinfer, modellib/transforms.py, run_inference.py.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["class_names"] == classes and config["num_classes"] == len(classes)
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (32, 0.5)
    steps = [
        getattr(transforms, step["name"])(**(step.get("arguments") or {}))
        for step in config["transform"]
    ]
    # A tile of a finer slide is resized as a slide's reader does, to within a grey level.
    finer = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    resized = np.asarray(steps[0](Image.fromarray(finer)), int)
    assert np.abs(resized - as_tile(finer, (32, 32)).transpose(1, 2, 0)).max() <= 1
    model = torch.jit.load(tmp_path / "out" / "torchscript_model.pt").eval()
    with torch.no_grad():
        logits = model(transforms.Compose(steps)(tile)[None])
    oracle = LogisticRegression(C=32 * len(classes) / 100, max_iter=1000)
    oracle.fit(train.values, train.labels)
    np.testing.assert_allclose(
        torch.softmax(logits, 1).numpy(), oracle.predict_proba(expected.numpy()), atol=1e-4
    )


def test_a_probe_of_another_student_is_refused(tiny):
    student, encoder, _ = load_student(f"local-dir:{tiny[0]}")
    assert student.tensors == hash_tensors(encoder.model)
    with pytest.raises(UserError, match="have 48 features, and those of .* 32"):
        fit_classifier(student, encoder, labelled(48, 2), None, None)
    other = {"name": "other", "sha256": "0" * 64}
    with pytest.raises(UserError, match="are of other .sha256 000000000000., not of"):
        fit_classifier(student, encoder, labelled(32, 2), other, None)
    with pytest.raises(UserError, match="--classes names a, and the tiles have 2 classes"):
        fit_classifier(student, encoder, labelled(32, 2), None, ["a"])
    gap = dataclasses.replace(labelled(32, 2), labels=np.arange(60) % 2 * 2)
    with pytest.raises(UserError, match="No training tile is of class 1, of 3"):
        fit_classifier(student, encoder, gap, None, None)


def test_the_resolution_comes_from_the_training_else_it_is_said_to_be_assumed(tiny, tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    assert "0.5 um/px is assumed" in load_student(f"local-dir:{folder}")[2]
    tiles = "{init_args: {target_mpp: 0.25}}"
    (folder / "config.yaml").write_text(f"data: {{init_args: {{datasets: {{train: {tiles}}}}}}}\n")
    student, _, note = load_student(f"local-dir:{folder}")
    assert (student.mpp, note) == (0.25, None)
    student, _, note = load_student(f"local-dir:{folder}", 1.0)
    assert student.mpp == 1.0 and "trained on tiles of 0.25 um/px" in note
    export_for(f"local-dir:{folder}", "trident", tmp_path / "out")
    assert "target_magnification=40" in (tmp_path / "out" / "trident_student.py").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()


def test_the_same_export_is_left_and_another_is_refused(tiny, tmp_path, capsys):
    command = ["export", str(tiny[0]), "--for", "stamp", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "Written: " in capsys.readouterr().out
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")}
    assert cli.main(command) == 0
    assert "Already there: " in capsys.readouterr().out
    assert cli.main([*command, "--mpp", "1"]) == 1
    assert "exists and does not hold this export" in capsys.readouterr().err
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--for", "lazy"], "Unknown tool 'lazy'. Expected one of lazyslide, trident"),
        (["--for", "wsinfer"], "WSInfer takes classifiers: give --embeddings DIR"),
        (["--for", "stamp", "--classes", "a,b"], "give that too"),
        (["--for", "atlaspatch", "--mpp", "0.3"], "whole magnifications .* student's is 33.33"),
        (["--for", "stamp", "--mpp", "-1"], "Expected micrometres per pixel"),
    ],
)
def test_wrong_requests_are_told_in_one_line_and_leave_nothing(
    arguments, said, tiny, tmp_path, capsys
):
    out = tmp_path / "out"
    assert cli.main(["export", str(tiny[0]), *arguments, "--output", str(out)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_student_is_refused(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), "--for", "timm", "--output", "x"]) == 1
    assert "holds no student" in capsys.readouterr().err


class Branching(torch.nn.Module):
    def forward(self, images):
        # The trace keeps the branch of its own batch of two.
        return images.mean((2, 3)) * (2.0 if len(images) == 2 else 1.0)


class Untraceable(torch.nn.Module):
    def forward(self, images):
        return {"no": "tensor"}


def test_what_torchscript_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="in TorchScript differ from PyTorch's by"):
        write_torchscript(Branching(), 8, tmp_path / "a.pt", "x")
    with pytest.raises(UserError, match="cannot be traced as TorchScript"):
        write_torchscript(Untraceable(), 8, tmp_path / "b.pt", "x")
