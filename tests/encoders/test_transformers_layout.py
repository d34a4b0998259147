import copy
import json

import pytest
import timm
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from g2l_plugin.encoders import backbones, transformers_layout
from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError

MEAN, STD = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)

REGISTERS = (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)
DINOV2 = (Dinov2Config, Dinov2Model)
VIT = (ViTConfig, ViTModel)

# The networks as published, as far as their config.json describes them.
PUBLISHED = {
    "hf-hub:histai/hibou-L": (
        REGISTERS,
        {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14, "use_swiglu_ffn": True},
        24,
    ),
    "hf-hub:histai/hibou-b": (
        REGISTERS,
        {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 14, "use_swiglu_ffn": True},
        12,
    ),
    "hf-hub:kaiko-ai/midnight": (
        DINOV2,
        {"hidden_size": 1536, "num_attention_heads": 24, "patch_size": 14, "use_swiglu_ffn": True},
        40,
    ),
    "hf-hub:owkin/phikon-v2": (
        DINOV2,
        {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16},
        24,
    ),
    "hf-hub:owkin/phikon": (VIT, {"hidden_size": 768, "num_attention_heads": 12}, 12),
}

TINY = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3, "patch_size": 14}


@pytest.fixture
def save_reference(tmp_path):
    """Saves a random model with transformers; returns the model and its source."""

    def save(family=REGISTERS, **config):
        torch.manual_seed(0)
        config_class, model_class = family
        config = config or TINY | {"use_swiglu_ffn": True}
        reference = model_class(config_class(**config)).eval()
        with torch.no_grad():  # zeros and ones would hide a weight that is not copied
            for parameter in reference.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        reference.save_pretrained(tmp_path)
        return reference, f"local-dir:{tmp_path}"

    return save


@torch.no_grad()
def tokens_of_both(reference, source, size=224):
    """All tokens from transformers and from our encoder, for the same images, in float32."""
    encoder = load_encoder(source, mean=MEAN, std=STD).eval()
    images = torch.rand(2, 3, size, size)
    normalized = (images - encoder.mean) / encoder.std
    expected = reference(normalized).last_hidden_state
    given = encoder.model.forward_features(normalized)
    torch.testing.assert_close(encoder(images), given[:, 0])
    return expected, given


@pytest.mark.parametrize("source", PUBLISHED)
def test_tokens_equal_those_of_transformers_at_full_width(save_reference, source):
    family, config, _ = PUBLISHED[source]
    expected, given = tokens_of_both(*save_reference(family, num_hidden_layers=2, **config))
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [REGISTERS, DINOV2])
@pytest.mark.parametrize("swiglu", [False, True])
def test_position_embeddings_are_resampled_as_in_transformers(save_reference, family, swiglu):
    config = TINY | {"use_swiglu_ffn": swiglu, "image_size": 518}
    expected, given = tokens_of_both(*save_reference(family, **config))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [REGISTERS, DINOV2, VIT])
@pytest.mark.parametrize("size", [(224, 224), (448, 448), (518, 518), (224, 336)])
def test_a_backbone_has_the_tokens_of_transformers_at_any_size(save_reference, family, size):
    patch = 16 if family is VIT else 14
    size = tuple(side // 14 * patch for side in size)
    config = {"image_size": 224 if family is VIT else 518, "patch_size": patch}
    reference, source = save_reference(family, **TINY | config)
    with torch.no_grad():
        reference.embeddings.position_embeddings.mul_(20)  # what is resampled is seen
        reference.save_pretrained(source.removeprefix("local-dir:"))
        images = torch.randn(2, 3, *size)
        options = {"interpolate_pos_encoding": True} if family is VIT else {}
        expected = reference(images, **options).last_hidden_state
        model = backbones.student(source).eval()
        given = copy.deepcopy(model).forward_features(images)  # eva copies it
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_a_published_model_has_the_network_in_the_table():
    for source, (family, config, depth) in PUBLISHED.items():
        parsed = family[0](num_hidden_layers=depth, **config).to_dict()
        assert transformers_layout.is_translatable(parsed)
        with torch.device("meta"):
            model = timm.create_model(
                transformers_layout.timm_architecture(parsed),
                num_classes=0,
                **transformers_layout.timm_model_args(parsed),
            )
        known = KNOWN_ENCODERS[source]
        assert sum(p.numel() for p in model.parameters()) == known.parameters
        assert model.num_features == known.embedding_dim


def test_networks_that_timm_lacks_are_not_translated():
    swiglu = Dinov2WithRegistersConfig(**TINY, use_swiglu_ffn=True).to_dict()
    renamed = swiglu | {"model_type": "someone's own"}  # as in Hibou's config
    assert transformers_layout.is_translatable(renamed)
    assert transformers_layout.complete({"model_type": "vit"})["hidden_size"] == 768
    for other in (
        {"model_type": "bert"},
        swiglu | {"hidden_act": "relu"},
        swiglu | {"qkv_bias": False},
    ):
        assert not transformers_layout.is_translatable(other)


def test_another_image_size_can_be_requested(save_reference):
    _, source = save_reference()
    encoder = load_encoder(source, mean=MEAN, std=STD, model_kwargs={"img_size": 448})
    assert encoder.model.patch_embed.grid_size == (32, 32)
    assert encoder(torch.rand(1, 3, 448, 448)).shape == (1, 48)


def test_timms_normalisation_for_the_architecture_is_not_used(save_reference, tmp_path):
    _, source = save_reference()
    with pytest.raises(UserError, match=r"normalisation of local-dir.* is not known"):
        load_encoder(source)
    preprocessor = {"image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    encoder = load_encoder(source)
    assert encoder.mean.flatten().tolist() == pytest.approx(MEAN)
    assert encoder.std.flatten().tolist() == pytest.approx(STD)
    assert encoder.provenance.license is None


def test_eva_gets_patch_maps_from_these_weights(save_reference):
    _, source = save_reference()
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        given = backbones.student(source, out_indices=(0, 2)).eval()(images)
        model = backbones.student(source).eval()
        expected = model.forward_intermediates(
            images, indices=(0, 2), norm=False, intermediates_only=True
        )
    for maps, reference in zip(given, expected, strict=True):
        torch.testing.assert_close(maps, reference)


def test_missing_and_unknown_weights_are_errors(save_reference, tmp_path):
    from safetensors.torch import load_file, save_file

    _, source = save_reference()
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.0.adapter.weight"] = torch.zeros(3)
    weights.pop("layernorm.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_encoder(source, mean=MEAN, std=STD)
    assert "1 weights missing (norm.bias)" in str(caught.value)
    assert "1 weights unknown (encoder.layer.0.adapter.weight)" in str(caught.value)
