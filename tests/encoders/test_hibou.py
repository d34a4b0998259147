import pytest
import timm
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from g2l_plugin.encoders import hibou
from g2l_plugin.encoders.load import load_encoder

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


@pytest.mark.parametrize("image_size", [224, 518])
def test_outputs_equal_those_of_transformers(tmp_path, image_size):
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=48,
        num_hidden_layers=2,
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
    encoder = load_encoder(f"local-dir:{tmp_path}", mean=MEAN, std=STD).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference((images - encoder.mean) / encoder.std).last_hidden_state[:, 0]
        given = encoder(images)
    # At another size both interpolate the position embeddings, each in its own way.
    tolerance = 1e-5 if image_size == 224 else 3e-2
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)


def test_hibou_l_is_the_network_that_the_paper_starts_from():
    assert hibou.is_transformers_layout(HIBOU_L)
    with torch.device("meta"):
        model = timm.create_model(
            hibou.ARCHITECTURE, num_classes=0, **hibou.timm_model_args(HIBOU_L)
        )
    assert sum(p.numel() for p in model.parameters()) == 303_657_216
    assert model.blocks[0].mlp.fc1.weight.shape == (5472, 1024)
    assert (model.num_features, model.num_prefix_tokens) == (1024, 5)
