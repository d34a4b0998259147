import dataclasses

import pytest
import timm
import torch
from eva.vision.models.networks.backbones import backbone_registry

from g2l_plugin.encoders.known import KNOWN_ENCODERS, find_known
from g2l_plugin.encoders.load import load_encoder


@pytest.mark.parametrize("known", KNOWN_ENCODERS.values(), ids=lambda known: known.source)
def test_a_known_encoder_has_the_size_in_the_table(known):
    kwargs = dict(known.model_kwargs)
    if "mlp_layer" in kwargs:
        kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
    with torch.device("meta"):
        model = timm.create_model(known.architecture, num_classes=0, **kwargs)
    assert sum(p.numel() for p in model.parameters()) == known.parameters
    assert model.num_features == known.embedding_dim
    assert model.patch_embed.img_size == (known.input_size, known.input_size)


def test_an_alternative_is_in_the_table_and_not_gated():
    for known in KNOWN_ENCODERS.values():
        if known.alternative:
            alternative = KNOWN_ENCODERS[known.alternative]
            same = ("mean", "std", "parameters", "architecture", "license")
            assert not alternative.gated
            assert all(getattr(alternative, name) == getattr(known, name) for name in same)


def test_eva_names_are_in_evas_registry():
    names = {known.eva for known in KNOWN_ENCODERS.values() if known.eva}
    assert names <= set(backbone_registry.entries())
    virchow2 = KNOWN_ENCODERS["hf-hub:paige-ai/Virchow2"]
    assert find_known("eva:pathology/paige_virchow2") is virchow2
    assert find_known("hf-hub:paige-ai/virchow2") is virchow2
    assert find_known("hf-hub:org/other") is None


def test_a_known_network_is_built_offline_with_random_weights():
    small = load_encoder("scratch:vits14")
    assert small.provenance == dataclasses.replace(small.provenance, pretrained=False, sha256=None)
    assert (small.embedding_dim, small.input_size, small.patch_size) == (384, (224, 224), (14, 14))
    lunit = "hf-hub:1aurent/vit_small_patch16_224.lunit_dino"
    assert load_encoder(lunit, pretrained=False).embedding_dim == 384
