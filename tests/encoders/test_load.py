import hashlib
import json

import pytest
import timm
import torch
from helpers import TINY, WIDER, save_tiny_model

from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.encoders.load import EncoderSource, load_encoder
from g2l_plugin.errors import UserError


def test_a_local_folder_is_loaded_with_its_normalisation_and_provenance(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    encoder = load_encoder(f"local-dir:{folder}").eval()
    assert encoder.mean.flatten().tolist() == pytest.approx([0.7, 0.6, 0.65])
    assert encoder.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.15])
    assert encoder.embedding_dim == 32
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert encoder.provenance.sha256 == digest
    assert encoder.provenance.license == "apache-2.0"
    assert digest[:12] in encoder.describe()
    assert "mean 0.7 0.6 0.65, std 0.2 0.25 0.15" in encoder.describe()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder.model((images - encoder.mean) / encoder.std)
        assert torch.equal(encoder(images), expected)
    assert encoder(images).shape == (2, 32)


def test_normalisation_is_no_part_of_the_weights(tmp_path):
    encoder = load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'model')}")
    assert all(key.startswith("model.") for key in encoder.state_dict())


def test_random_weights_are_asked_for_and_said(tmp_path):
    source = EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=WIDER)
    encoder = source.load()
    assert encoder.embedding_dim == 48
    assert not encoder.provenance.pretrained
    assert encoder.provenance.sha256 is None
    assert "random weights" in encoder.describe()
    folder = save_tiny_model(tmp_path / "model")
    trained, fresh = (load_encoder(f"local-dir:{folder}", pretrained=p) for p in (True, False))
    assert not torch.equal(
        trained.model.patch_embed.proj.weight, fresh.model.patch_embed.proj.weight
    )


def test_a_given_normalisation_wins(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    encoder = load_encoder(f"local-dir:{folder}", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_evas_registry_is_a_source():
    encoder = load_encoder(
        "eva:universal/vit_tiny_patch16_224_random", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert encoder.embedding_dim == 192
    assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, 192)


def test_the_width_of_a_wrapped_network_is_that_of_what_the_wrapper_gives():
    class Doubled(torch.nn.Module):  # as eva joins class token and mean of the patch tokens
        def __init__(self):
            super().__init__()
            self.model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
            self.model.pretrained_cfg = {"input_size": (3, 32, 32)}

        def forward(self, images):
            return self.model(images).repeat(1, 2)

    doubled = Doubled().train()
    encoder = Encoder(doubled, mean=(0.5,) * 3, std=(0.5,) * 3, provenance=Provenance("x"))
    assert encoder.embedding_dim == 64
    assert doubled.training


def test_a_model_published_to_give_all_tokens_gives_its_class_token(tmp_path):
    folder = save_tiny_model(tmp_path / "model", global_pool="")
    encoder = load_encoder(f"local-dir:{folder}").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.model.forward_features((images - encoder.mean) / encoder.std)
        assert torch.equal(encoder(images), tokens[:, 0])


def test_layers_are_named_as_a_config_can():
    kwargs = TINY | {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    encoder = load_encoder("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=kwargs)
    assert isinstance(encoder.model.blocks[0].mlp, timm.layers.GluMlp)
    with pytest.raises(UserError, match="no layer 'NoSuchLayer' for `mlp_layer`"):
        load_encoder(
            "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs={"mlp_layer": "NoSuchLayer"}
        )


def test_pickled_weights_are_never_read(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*model\.safetensors"):
        load_encoder(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("resnet50", "Unknown encoder source 'resnet50'. Expected hf-hub:"),
        ("timm:no_such_model", "no weights on the Hub for 'no_such_model'"),
        ("eva:pathology/none", "eva has no backbone 'pathology/none'.*bioptimus_h_optimus_0"),
        ("local-dir:/no/such/folder", "there is no /no/such/folder/config.json"),
        ("hf-hub:org/name@a", "asked for at two revisions, a and b"),
    ],
)
def test_a_wrong_source_is_told_in_one_line(source, said):
    with pytest.raises(UserError, match=said) as caught:
        load_encoder(source, "b" if "@" in source else None)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_told(tmp_path):
    with pytest.raises(UserError, match="timm cannot build timm:vit_tiny_patch16_224"):
        load_encoder(
            "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY | {"no_such": 1}
        )
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(
        UserError, match="another shape .cls_token is .1, 1, 32. and not .1, 1, 64."
    ) as caught:
        load_encoder(f"local-dir:{folder}", model_kwargs={"embed_dim": 64})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    with pytest.raises(UserError, match="three values each"):
        load_encoder(f"local-dir:{folder}", mean=[0.5])
    (folder / "config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(UserError, match="neither timm's .* nor transformers'"):
        load_encoder(f"local-dir:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        load_encoder(f"local-dir:{folder}")


def test_a_file_that_was_cut_off_is_told(tmp_path):
    weights = save_tiny_model(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="no whole safetensors file") as caught:
        load_encoder(f"local-dir:{weights.parent}")
    assert "\n" not in str(caught.value)


def test_what_eva_cannot_load_is_told(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"eva cannot build eva:pathology/mahmood_uni.*HF_TOKEN"):
        load_encoder("eva:pathology/mahmood_uni")
