import errno
import json
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from helpers import TINY, save_tiny_model

from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError
from g2l_plugin.publishing.export import export_student

# What a machine without this package does: blocked, importing it would fail.
PLAIN_TIMM = """
import sys
sys.modules["g2l_plugin"] = None
import timm, torch
folder, images, out = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
cfg = model.pretrained_cfg
mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
with torch.no_grad():
    torch.save(model((torch.load(images) - mean) / std), out)
"""


def make_student(**model_kwargs):
    torch.manual_seed(3)
    return load_encoder(
        "timm:vit_tiny_patch16_224",
        pretrained=False,
        model_kwargs=TINY | model_kwargs,
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
    ).eval()


def test_plain_timm_gives_the_same_outputs_bit_for_bit(tmp_path):
    student = make_student()
    folder = export_student(student, tmp_path / "student", card="# card")
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    images = torch.rand(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    environment = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PATH": ""}
    arguments = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    subprocess.run(
        [sys.executable, "-c", PLAIN_TIMM, *arguments], check=True, env=environment, timeout=120
    )
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), student(images))


def test_the_config_says_how_to_prepare_images(tmp_path):
    folder = export_student(make_student(), tmp_path / "student", card="", license="apache-2.0")
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert cfg["mean"] == [0.707223, 0.578729, 0.703617]
    assert cfg["std"] == [0.211883, 0.230117, 0.177517]
    assert cfg["input_size"] == [3, 32, 32]
    assert (cfg["license"], cfg["tag"], cfg["num_classes"]) == ("apache-2.0", "g2l", 0)


def test_the_architecture_of_the_papers_student_survives_the_round_trip(tmp_path):
    student = load_encoder(
        "timm:vit_giant_patch14_reg4_dinov2",
        pretrained=False,
        model_kwargs={
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "mlp_ratio": 5.34375,
            "img_size": 28,
        },
    ).eval()
    folder = export_student(student, tmp_path / "student", card="")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded((images - student.mean) / student.std), student(images))


def test_publishing_again_replaces_the_folder_whole(tmp_path):
    export_student(make_student(), tmp_path / "student", card="old")
    (tmp_path / "student" / "extra").touch()
    folder = export_student(make_student(depth=2), tmp_path / "student", card="new")
    assert (folder / "README.md").read_text() == "new"
    assert not (folder / "extra").exists()
    assert load_encoder(f"local-dir:{folder}").model.blocks[1] is not None
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_model_that_timm_cannot_build_is_refused_and_nothing_is_left(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 4))
    student = Encoder(model, mean=(0,) * 3, std=(1.0,) * 3, provenance=Provenance("x"))
    with pytest.raises(UserError, match="Sequential is none of timm's networks"):
        export_student(student, tmp_path / "student", card="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UserError, match="thesis holds other files and no student"):
        export_student(make_student(), tmp_path / "thesis", card="")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "empty").mkdir()
    assert (export_student(make_student(), tmp_path / "empty", card="") / "config.json").is_file()


def test_a_full_disk_leaves_nothing_and_what_was_there(tmp_path, monkeypatch):
    folder = export_student(make_student(), tmp_path / "student", card="old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UserError, match="student cannot be written: .*No space left.*Make room"):
        export_student(make_student(), folder, card="new")
    assert (folder / "README.md").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_loaded_model_is_published_as_it_is(tmp_path):
    source = save_tiny_model(tmp_path / "source")
    first = load_encoder(f"local-dir:{source}").eval()
    second = load_encoder(f"local-dir:{export_student(first, tmp_path / 'copy', card='')}").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
