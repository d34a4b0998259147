import json

import pytest
import torch
from helpers import save_own_code
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
)

from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError

NORMALIZATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# transformers has this network, timm does not: its queries have no bias.
CONFIG = Dinov2WithRegistersConfig(
    hidden_size=48, num_attention_heads=3, num_hidden_layers=1, patch_size=14, qkv_bias=False
)


@pytest.fixture
def reference(tmp_path):
    torch.manual_seed(0)
    reference = Dinov2WithRegistersModel(CONFIG).eval()
    reference.save_pretrained(tmp_path)
    return reference


def test_networks_that_timm_lacks_are_built_by_transformers(tmp_path, reference):
    source = f"local-dir:{tmp_path}"
    encoder = load_encoder(source, **NORMALIZATION).eval()
    patches = load_encoder(source, output="patch_tokens", **NORMALIZATION).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference((images - 0.5) / 0.5).last_hidden_state
        torch.testing.assert_close(encoder(images), expected[:, 0])
        torch.testing.assert_close(patches(images), expected[:, 5:])
    assert (encoder.embedding_dim, encoder.input_size, encoder.patch_size) == (
        48,
        (224, 224),
        (14, 14),
    )
    fresh = load_encoder(source, pretrained=False, **NORMALIZATION)
    assert not fresh.provenance.pretrained


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])),
            "gives .1, ",
        ),
        (ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])), "cannot build"),
    ],
)
def test_a_network_without_a_class_token_is_an_error(tmp_path, model, message):
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_encoder(f"local-dir:{tmp_path}", **NORMALIZATION)


def test_the_normalisation_is_read_from_the_repository(tmp_path, reference):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    encoder = load_encoder(f"local-dir:{tmp_path}")
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    for settings, message in (
        ({"do_normalize": False}, "images that are not normalised"),
        ({"rescale_factor": 1 / 127.5}, "scaled by 0.00784314"),
    ):
        file.write_text(json.dumps(settings))
        with pytest.raises(UserError, match=message):
            load_encoder(f"local-dir:{tmp_path}", **NORMALIZATION)
    file.unlink()
    with pytest.raises(UserError, match="accepts no `model_kwargs`; given nonsense"):
        load_encoder(f"local-dir:{tmp_path}", model_kwargs={"nonsense": 1}, **NORMALIZATION)


def test_weights_that_transformers_would_leave_random_are_an_error(tmp_path, reference):
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match="1 weights in model.safetensors do not match its config.json: missing"
    ):
        load_encoder(f"local-dir:{tmp_path}", **NORMALIZATION)


def test_a_repositorys_code_runs_only_if_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = save_own_code(tmp_path / "own")
    source = f"local-dir:{folder}"

    for allowed in (None, "org/other"):
        with pytest.raises(UserError, match=f"`trust_remote_code: {folder}`"):
            load_encoder(source, trust_remote_code=allowed, **NORMALIZATION)
    assert not (tmp_path / "m").exists()

    encoder = load_encoder(source, trust_remote_code=str(folder), **NORMALIZATION)
    with torch.no_grad():
        embedding = encoder(torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(embedding, torch.full((1, 8), 3.0))

    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "org/other--own_model.OwnModel"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="code of another repository, org/other"):
        load_encoder(source, trust_remote_code=str(folder), **NORMALIZATION)
