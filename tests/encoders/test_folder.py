import errno
import hashlib
import json
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
import transformers
from helpers import TINY, run_script, save_tiny_model

from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.encoders.folder import export_student, write_folder
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.errors import UserError

# Loads a folder as on a machine without this package: importing the package fails.
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

WRITE = """
import sys
from pathlib import Path
from g2l_plugin.encoders.folder import write_folder
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.timm_network import timm_config
student = load_encoder(sys.argv[1])
metadata = {"teacher": "a", "start": "b", "step": "7"}
state = student.model.state_dict()
write_folder(Path(sys.argv[2]), state, timm_config(student), card="", metadata=metadata)
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


def test_the_config_states_how_to_prepare_images(tmp_path):
    folder = export_student(make_student(), tmp_path / "student", card="", license="apache-2.0")
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert cfg["mean"] == [0.707223, 0.578729, 0.703617]
    assert cfg["std"] == [0.211883, 0.230117, 0.177517]
    assert cfg["input_size"] == [3, 32, 32]
    assert (cfg["license"], cfg["tag"], cfg["num_classes"]) == ("apache-2.0", "g2l", 0)


def test_the_papers_architecture_is_exported_and_loaded_unchanged(tmp_path):
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


def test_exporting_again_replaces_the_whole_folder(tmp_path):
    export_student(make_student(), tmp_path / "student", card="old")
    (tmp_path / "student" / "extra").touch()
    folder = export_student(make_student(depth=2), tmp_path / "student", card="new")
    assert (folder / "README.md").read_text() == "new"
    assert not (folder / "extra").exists()
    assert load_encoder(f"local-dir:{folder}").model.blocks[1] is not None
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_model_that_timm_cannot_build_is_an_error_and_leaves_nothing(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 4))
    student = Encoder(model, mean=(0,) * 3, std=(1.0,) * 3, provenance=Provenance("x"))
    with pytest.raises(UserError, match="Sequential is not a timm network"):
        export_student(student, tmp_path / "student", card="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UserError, match="thesis holds other files and no student"):
        export_student(make_student(), tmp_path / "thesis", card="")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "empty").mkdir()
    assert (export_student(make_student(), tmp_path / "empty", card="") / "config.json").is_file()


def test_a_full_disk_leaves_the_former_folder_unchanged(tmp_path, monkeypatch):
    folder = export_student(make_student(), tmp_path / "student", card="old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UserError, match="student cannot be written: .*No space left.*Make room"):
        export_student(make_student(), folder, card="new")
    assert (folder / "README.md").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_loaded_model_is_exported_unchanged(tmp_path):
    source = save_tiny_model(tmp_path / "source")
    first = load_encoder(f"local-dir:{source}").eval()
    second = load_encoder(f"local-dir:{export_student(first, tmp_path / 'copy', card='')}").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_the_same_student_has_the_same_hash_in_every_process(tmp_path):
    (script := tmp_path / "script.py").write_text(WRITE)
    source = save_tiny_model(tmp_path / "source")
    hashes = set()
    for seed in ("random", "1", "2"):
        folder = tmp_path / seed
        hash_seed = {} if seed == "random" else {"PYTHONHASHSEED": seed}
        result = run_script(script, f"local-dir:{source}", folder, **hash_seed)
        assert result.returncode == 0, result.stderr
        files = [folder / "model.safetensors", folder / "config.json"]
        hashes.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(hashes) == 1
    with safetensors.safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    notes = json.loads((folder / "config.json").read_text())["g2l"]
    assert notes == {"teacher": "a", "start": "b", "step": "7"}


def test_transformers_loads_an_exported_student(tmp_path):
    student = make_student()
    metadata = {"step": "7"}
    folder = write_folder(
        tmp_path / "student",
        student.model.state_dict(),
        timm_config(student),
        card="",
        metadata=metadata,
    )
    network = transformers.AutoModel.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images).pooler_output, student.model(images))
