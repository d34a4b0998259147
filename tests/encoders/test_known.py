import timm
import torch

from g2l_plugin.encoders.known import KNOWN_ENCODERS


def test_h_optimus_0_has_the_size_that_the_table_says():
    known = KNOWN_ENCODERS["hf-hub:bioptimus/H-optimus-0"]
    with torch.device("meta"):
        model = timm.create_model(
            "vit_giant_patch14_reg4_dinov2", img_size=224, num_classes=0, **known.model_kwargs
        )
    assert sum(p.numel() for p in model.parameters()) == known.parameters
    assert model.num_features == known.embedding_dim


def test_an_alternative_is_known_itself_and_not_gated():
    for known in KNOWN_ENCODERS.values():
        if known.alternative:
            assert not KNOWN_ENCODERS[known.alternative].gated
