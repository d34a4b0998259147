"""Exports in fewer bits: used by the printed lines, and their cost measured again."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from helpers import save_tiny_model
from PIL import Image
from timm.models import save_for_hf

from g2l_plugin import cli
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError
from g2l_plugin.publishing.export.export import export_for
from g2l_plugin.publishing.export.precision import ExampleTiles, lower_onnx
from g2l_plugin.publishing.onnx_export import export_onnx

N = 5
WAYS = [
    ("onnx", "float16"),
    ("onnx", "int8"),
    ("torchscript", "float16"),
    ("torchscript", "bfloat16"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A student's folder, tiles (N, 32, 32, 3), their folder, and their embeddings in float32."""
    root = tmp_path_factory.mktemp("precision")
    folder = save_tiny_model(root / "tiny", depth=2)
    tiles = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    (root / "my tiles").mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(root / "my tiles" / f"{number}.png")
    encoder = load_encoder(f"local-dir:{folder}").eval()
    with torch.no_grad():
        expected = encoder(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255)
    return folder, tiles, root / "my tiles", expected.numpy()


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def exported(request, tiny, tmp_path_factory):
    """Tool, precision, what `g2l export` wrote and printed, and its command."""
    tool, precision = request.param
    out = tmp_path_factory.mktemp("exports") / "out"
    command = ["export", str(tiny[0]), "--for", tool, "--output", str(out)]
    command += ["--precision", precision, "--tiles", str(tiny[2])]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(parts)))
        assert cli.main(command) == 0
    return tool, precision, out, printed, command


def used(tool, lines, tiles):
    """Embeddings by the printed lines, from uint8 (B, H, W, 3)."""
    names = {"np": np, "onnxruntime": onnxruntime, "torch": torch}
    names["tiles"] = tiles if tool == "onnx" else torch.from_numpy(tiles)
    with torch.no_grad():
        exec(lines, names)
    return np.asarray(names["embeddings"])


def cosine(a, b):
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)))


def test_the_cost_that_is_said_is_what_a_user_of_the_lines_has(exported, tiny):
    tool, precision, out, printed, _ = exported
    _, tiles, _, expected = tiny
    found = used(tool, printed[-1], tiles)
    assert found.dtype == np.float32
    cosines = [
        cosine(a.astype(float), b.astype(float)) for a, b in zip(expected, found, strict=True)
    ]
    assert 0.99 < min(cosines) < 1 - 1e-9  # lower indeed
    cost = json.loads((out / "export.json").read_text())["cost"]
    assert cost["cosine_mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert cost["cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    assert (cost["precision"], cost["n_tiles"], cost["tiles"]) == (precision, N, "my tiles")
    (note,) = [line for line in printed if "cosine" in line]
    assert note.startswith(f"Note: {precision}, ") and f"on {N} tiles of my tiles" in note
    said = float(note.partition("at least ")[2].partition(",")[0])
    assert min(cosines) - 2e-5 < said <= min(cosines) + 1e-6
    if tool == "onnx":
        assert note.removeprefix("Note: ") in (out / "README.md").read_text()


def test_any_number_of_tiles_is_embedded_as_before(exported, tiny):
    tool, _, _, printed, _ = exported
    for n_tiles in (1, 4):
        found = used(tool, printed[-1], tiny[1][:n_tiles])
        np.testing.assert_allclose(found, tiny[3][:n_tiles], atol=0.05)


def test_the_weights_are_in_the_precision(exported, tiny):
    tool, precision, out, _, _ = exported
    if tool == "torchscript":
        module = torch.jit.load(out / "torchscript_model.pt")
        assert {p.dtype for p in module.parameters()} == {getattr(torch, precision)}
        return
    graph = onnx.load(out / "model.onnx").graph
    weights = {i.name: i for i in graph.initializer if np.prod(i.dims) >= 32 * 32}
    kind = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    # Two blocks of four weights; float16 has the patch embedding's too.
    assert sum(i.data_type == kind for i in weights.values()) >= 8
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_same_is_left_with_its_cost_and_another_precision_is_refused(exported, capsys):
    *_, printed, command = exported
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "Already there: " in said.out
    assert next(line for line in printed if "cosine" in line) in said.err
    assert cli.main(command[: command.index("--precision")]) == 1
    assert "does not hold this export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--for", "onnx", "--precision", "fp16"], "Unknown precision 'fp16'. Expected float32, "),
        (["--for", "onnx", "--precision", "bfloat16"], "bfloat16 is for torchscript."),
        (["--for", "stamp", "--precision", "int8"], "but float32. int8 is for onnx."),
        (["--for", "timm", "--precision", "float16"], "float16 is for onnx and torchscript."),
        (["--for", "onnx", "--tiles", "."], "give that too"),
        (["--for", "onnx", "--precision", "int8", "--tiles", "none"], "none does not exist"),
    ],
)
def test_what_a_tool_cannot_take_is_told_in_one_line(arguments, said, tiny, tmp_path, capsys):
    assert cli.main(["export", str(tiny[0]), *arguments, "--output", str(tmp_path / "out")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0], lines
    assert list(tmp_path.iterdir()) == []


def test_a_convolutional_student_has_nothing_for_int8(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=0)
    mean = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_for_hf(model, str(tmp_path / "lite"), safe_serialization=True, data_config=mean)
    tiles = ExampleTiles(lambda size: torch.rand(2, 3, size, size), "noise")
    source = f"local-dir:{tmp_path / 'lite'}"
    with pytest.raises(UserError, match="as int8, which is for matrix multiplications"):
        export_for(source, "onnx", tmp_path / "out", precision="int8", tiles=tiles)
    assert [path.name for path in tmp_path.iterdir()] == ["lite"]
    export_for(source, "onnx", tmp_path / "out", precision="float16", tiles=tiles)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_features_that_overflow_are_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    encoder = load_encoder(f"local-dir:{folder}").eval()
    graph = export_onnx(folder)
    huge = ExampleTiles(lambda size: torch.full((2, 3, size, size), 1e9), "noise")
    with pytest.raises(UserError, match="not finite in float16, so nothing is written"):
        lower_onnx(graph, encoder, "float16", huge, 32)


def test_without_tiles_of_the_users_the_demos_are_taken(tiny, tmp_path, capsys):
    command = ["export", str(tiny[0]), "--for", "torchscript", "--precision", "bfloat16"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "tiles of the demo cohort." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
