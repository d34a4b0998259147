import json

import pytest
import timm
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from g2l_plugin.encoders import backbones, hibou
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError

MEAN, STD = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)

# Of https://huggingface.co/histai/hibou-L, as far as the architecture goes.
HIBOU_L = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "num_register_tokens": 4,
    "use_swiglu_ffn": True,
}


@pytest.fixture
def save_reference(tmp_path):
    """Saves a small random model as transformers does; returns it and our source of it."""

    def save(image_size=224):
        torch.manual_seed(0)
        config = Dinov2WithRegistersConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            patch_size=14,
            image_size=image_size,
            use_swiglu_ffn=True,
            num_register_tokens=4,
        )
        reference = Dinov2WithRegistersModel(config).eval()
        with torch.no_grad():  # zeros and ones would hide a weight that is not carried over
            for parameter in reference.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        reference.save_pretrained(tmp_path)
        return reference, f"local-dir:{tmp_path}"

    return save


@pytest.mark.parametrize("image_size", [224, 518])
def test_outputs_equal_those_of_transformers(save_reference, image_size):
    reference, source = save_reference(image_size)
    encoder = load_encoder(source, mean=MEAN, std=STD).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference((images - encoder.mean) / encoder.std).last_hidden_state[:, 0]
        given = encoder(images)
    # At another size both interpolate the position embeddings, each in its own way.
    tolerance = 1e-5 if image_size == 224 else 3e-2
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)


def test_another_image_size_than_the_papers_can_be_asked_for(save_reference):
    _, source = save_reference()
    encoder = load_encoder(source, mean=MEAN, std=STD, model_kwargs={"img_size": 448})
    assert encoder.model.patch_embed.grid_size == (32, 32)
    assert encoder(torch.rand(1, 3, 448, 448)).shape == (1, 48)


def test_normalisation_is_never_that_of_timms_architecture(save_reference, tmp_path):
    _, source = save_reference()
    with pytest.raises(UserError, match=r"normalisation of local-dir.* is not known"):
        load_encoder(source)
    preprocessor = {"image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    encoder = load_encoder(source)
    assert encoder.mean.flatten().tolist() == pytest.approx(MEAN)
    assert encoder.std.flatten().tolist() == pytest.approx(STD)
    assert encoder.provenance.license is None


def test_eva_gets_patch_maps_of_it_with_these_weights(save_reference):
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


def test_hibou_l_is_the_network_that_the_paper_starts_from():
    assert hibou.is_transformers_layout(HIBOU_L)
    with torch.device("meta"):
        model = timm.create_model(
            hibou.ARCHITECTURE, num_classes=0, **hibou.timm_model_args(HIBOU_L)
        )
    assert sum(p.numel() for p in model.parameters()) == 303_657_216
    assert model.blocks[0].mlp.fc1.weight.shape == (5472, 1024)
    assert (model.num_features, model.num_prefix_tokens) == (1024, 5)
