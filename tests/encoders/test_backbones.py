import json
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model
from safetensors.torch import load_file, save_file

from g2l_plugin.encoders import backbones
from g2l_plugin.errors import UserError


@pytest.fixture
def source(tmp_path):
    return f"local-dir:{save_tiny_model(tmp_path / 'student', depth=3)}"


def test_a_student_gives_class_token_embeddings_at_any_image_size(source):
    model = backbones.student(source).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 32)


@pytest.mark.parametrize(("out_indices", "n_maps"), [(1, 1), (2, 2), ((0, 2), 2)])
def test_out_indices_give_patch_maps(source, out_indices, n_maps):
    maps = backbones.student(source, out_indices=out_indices).eval()(torch.zeros(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 8)] * n_maps


def test_patch_maps_never_come_from_random_weights(source):
    folder = Path(source.removeprefix("local-dir:"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("blocks.0.norm1.weight")
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["num_classes"] = 1000  # timm is not strict then
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="1 weights missing .blocks.0.norm1.weight."):
        backbones.student(source, out_indices=1)


def test_the_variable_names_the_student(source, monkeypatch):
    monkeypatch.setenv("G2L_STUDENT", source)
    assert backbones.student()(torch.zeros(1, 3, 32, 32)).shape == (1, 32)


def test_the_error_for_no_source_names_both_ways_to_give_one(monkeypatch):
    monkeypatch.delenv("G2L_STUDENT", raising=False)
    with pytest.raises(UserError, match=r"G2L_STUDENT=.*MODEL_EXTRA_KWARGS="):
        backbones.student()


@pytest.mark.parametrize("name", ["breast_vitl14", "prostate_vitl14"])
def test_named_students_come_from_the_hub_namespace(name, monkeypatch):
    monkeypatch.delenv("G2L_HUB_NAMESPACE", raising=False)
    with pytest.raises(UserError, match="G2L_HUB_NAMESPACE"):
        getattr(backbones, name)()
    calls = []
    monkeypatch.setenv("G2L_HUB_NAMESPACE", "us")
    monkeypatch.setattr(backbones, "student", lambda *args: calls.append(args))
    getattr(backbones, name)("v1", 2)
    assert calls == [(f"hf-hub:us/{name}", "v1", 2, True)]


def test_a_student_need_not_be_a_transformer(tmp_path):
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("resnet10t", num_classes=0)
    save_for_hf(model, str(tmp_path / "resnet"), safe_serialization=True)
    model = backbones.student(f"local-dir:{tmp_path / 'resnet'}")
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
