import doctest
import hashlib
import json

import pytest
import timm
import torch
from eva.vision.models.networks.backbones import backbone_registry
from helpers import TINY, WIDER, save_tiny_model
from safetensors.torch import load_file, save, save_file
from timm.models import save_for_hf
from transformers import ViTConfig, ViTModel

from g2l_plugin.encoders import folder, load
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


def test_the_state_dict_does_not_hold_the_normalisation(tmp_path):
    encoder = load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'model')}")
    assert all(key.startswith("model.") for key in encoder.state_dict())


def test_random_weights_are_loaded_on_request_and_reported(tmp_path):
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


def test_a_given_normalisation_overrides_the_encoders_own(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    encoder = load_encoder(f"local-dir:{folder}", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_evas_registry_is_a_source():
    encoder = load_encoder(
        "eva:universal/vit_tiny_patch16_224_random", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert encoder.embedding_dim == 192
    assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, 192)


def test_the_embedding_width_of_a_wrapped_network_is_the_wrappers():
    class Doubled(torch.nn.Module):  # as eva joins class token and mean patch token
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


def test_layers_can_be_given_by_name():
    kwargs = TINY | {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    encoder = load_encoder("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=kwargs)
    assert isinstance(encoder.model.blocks[0].mlp, timm.layers.GluMlp)
    with pytest.raises(UserError, match="no layer 'NoSuchLayer' for `mlp_layer`"):
        load_encoder(
            "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs={"mlp_layer": "NoSuchLayer"}
        )


def test_the_output_is_class_token_mean_patch_or_patches(tmp_path):
    source = f"local-dir:{save_tiny_model(tmp_path / 'model', reg_tokens=2)}"
    images = torch.rand(2, 3, 32, 32)
    plain, joined, patches = (
        load_encoder(source, output=output).eval()
        for output in ("class_token", "class_and_mean_patch", "patch_tokens")
    )
    with torch.no_grad():
        tokens = plain.model.forward_features((images - plain.mean) / plain.std)
        assert torch.equal(plain(images), tokens[:, 0])
        assert torch.equal(patches(images), tokens[:, 3:])
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], dim=1)
        assert torch.equal(joined(images), expected)
    assert (joined.embedding_dim, patches.embedding_dim) == (64, 32)
    assert (plain.input_size, plain.patch_size) == ((32, 32), (8, 8))
    with pytest.raises(UserError, match="timm:resnet10t does not return patch tokens"):
        load_encoder("timm:resnet10t", pretrained=False, output="patch_tokens")


def test_weights_have_the_requested_precision(tmp_path):
    source = f"local-dir:{save_tiny_model(tmp_path / 'model')}"
    full, half = (load_encoder(source, dtype=d).eval() for d in ("float32", "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        cosine = torch.cosine_similarity(full(images), half(images).float())
    assert cosine.min() > 0.99
    assert full.provenance == half.provenance
    with pytest.raises(UserError, match="Unknown dtype 'int8'. Expected float32, bfloat16"):
        load_encoder(source, dtype="int8")
    with pytest.raises(UserError, match="Unknown output 'mean'. Expected class_token, class_and"):
        load_encoder(source, output="mean")


def test_missing_weights_are_never_left_random(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    # timm then assumes a replaced classifier, and is not strict.
    config["pretrained_cfg"]["num_classes"] = 1000
    (folder / "config.json").write_text(json.dumps(config | {"num_classes": 1000}))
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    save_file(weights | head, folder / "model.safetensors")
    assert load_encoder(f"local-dir:{folder}").embedding_dim == 32
    weights.pop("norm.weight")
    save_file(weights | head, folder / "model.safetensors")
    timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)  # no error in timm
    with pytest.raises(UserError, match="1 weights missing .norm.weight."):
        load_encoder(f"local-dir:{folder}")


def test_timms_default_normalisation_is_not_used(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["pretrained_cfg"]["mean"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="normalisation of .* is not known: mean None"):
        load_encoder(f"local-dir:{folder}")


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    file = folder / "model.safetensors"
    size = int.from_bytes(file.read_bytes()[:8], "little")
    target = next(
        n for n in range(size, size + 65536) if n.to_bytes(8, "little")[:2] == b"\x80\x02"
    )
    data = file.read_bytes()
    header = data[8 : 8 + size].ljust(target)
    file.write_bytes(target.to_bytes(8, "little") + header + data[8 + size :])
    assert load_encoder(f"local-dir:{folder}").embedding_dim == 32


def test_computed_tables_that_are_not_saved_are_right(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=0, **args).eval()
    assert {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    save_for_hf(model, str(tmp_path / "rotary"), safe_serialization=True)
    encoder = load_encoder(f"local-dir:{tmp_path / 'rotary'}").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(images), model((images - encoder.mean) / encoder.std))


def test_evas_own_weights_are_identified_by_a_hash_of_their_tensors(monkeypatch):
    entries = backbone_registry._registry
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    monkeypatch.setitem(entries, "pathology/ours", lambda: network)
    first, second = (
        load_encoder("eva:pathology/ours", mean=(0.5,) * 3, std=(0.5,) * 3) for _ in range(2)
    )
    assert len(first.provenance.sha256) == 64
    assert first.provenance == second.provenance
    assert f"tensors sha256 {first.provenance.sha256[:12]}" in first.describe()
    with torch.no_grad():
        network.norm.bias[0] += 1
    third = load_encoder("eva:pathology/ours", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert third.provenance.sha256 != first.provenance.sha256
    # timm's normalisation for an architecture does not apply to weights from another source.
    with pytest.raises(UserError, match="normalisation of eva:pathology/ours is not known"):
        load_encoder("eva:pathology/ours")


@pytest.mark.parametrize("layout", ["timm", "transformers", "transformers_only"])
def test_weights_that_are_overwritten_later_stay_those_that_were_hashed(tmp_path, layout):
    if layout == "timm":
        save_tiny_model(tmp_path / "model")
    else:
        config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config |= {"image_size": 32, "patch_size": 8, "qkv_bias": layout == "transformers"}
        ViTModel(ViTConfig(**config)).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    normalisation = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = load_encoder(f"local-dir:{tmp_path / 'model'}", **normalisation).eval()
    images = torch.rand(1, 3, 32, 32)
    zeros = save({name: torch.zeros_like(value) for name, value in load_file(file).items()})
    with file.open("r+b") as stream:
        stream.write(zeros)
        stream.truncate(1000)
    with torch.no_grad():
        assert encoder(images).abs().sum() > 0
    assert all(weight.abs().sum() > 0 for name, weight in named_matrices(encoder))


def named_matrices(encoder):
    return [(name, weight) for name, weight in encoder.named_parameters() if weight.ndim > 1]


def test_weights_that_change_while_they_are_read_are_an_error(tmp_path, monkeypatch):
    file = save_tiny_model(tmp_path / "model") / "model.safetensors"

    def slow(*args, **kwargs):
        model = load_folder(*args, **kwargs)
        file.write_bytes(file.read_bytes())
        return model

    load_folder = load.load_folder
    monkeypatch.setattr(load, "load_folder", slow)
    with pytest.raises(UserError, match="was changed while it was read"):
        load_encoder(f"local-dir:{tmp_path / 'model'}")


def test_a_git_lfs_pointer_is_named(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match="is a Git-LFS pointer.*git lfs pull"):
        load_encoder(f"local-dir:{folder}")


def test_pickled_weights_are_never_read(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    for zipped in (True, False):
        torch.save({}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
        with pytest.raises(UserError, match="is a pickle despite its name"):
            load_encoder(f"local-dir:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*model\.safetensors"):
        load_encoder(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet50", "Unknown encoder source 'resnet50'. Expected hf-hub:"),
        ("timm:vit_tiny_patch16_224.typo", "timm cannot build timm:vit_tiny_patch16_224.typo"),
        ("timm:no_such_model", "no weights on the Hub for 'no_such_model'"),
        ("eva:pathology/none", "eva has no backbone 'pathology/none'.*bioptimus_h_optimus_0"),
        ("local-dir:/no/such/folder", "there is no /no/such/folder/config.json"),
        ("scratch:vitx", "Unknown network scratch:vitx. Expected one that `g2l models` lists"),
        ("hf-hub:org/name@a", "requested at two revisions, a and b"),
    ],
)
def test_a_wrong_source_is_an_error_in_one_line(source, message):
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(source, "b" if "@" in source else None)
    assert "\n" not in str(caught.value)


def test_only_the_hub_has_revisions(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match="has no revisions .`revision: v1`."):
        load_encoder(f"local-dir:{folder}", "v1")


def test_wrong_arguments_are_errors(tmp_path):
    with pytest.raises(UserError, match="timm cannot build timm:vit_tiny_patch16_224"):
        load_encoder(
            "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY | {"no_such": 1}
        )
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(
        UserError, match="another shape .cls_token is .1, 1, 32., expected .1, 1, 64."
    ) as caught:
        load_encoder(f"local-dir:{folder}", model_kwargs={"embed_dim": 64})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    with pytest.raises(UserError, match="three values each"):
        load_encoder(f"local-dir:{folder}", mean=[0.5])
    (folder / "config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(UserError, match="neither timm's .* nor transformers'"):
        load_encoder(f"local-dir:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_encoder(f"local-dir:{folder}")


def test_arguments_that_eva_would_ignore_are_errors():
    with pytest.raises(
        UserError, match="does not accept img_size. Expected `model_kwargs` among dynamic"
    ):
        load_encoder("eva:pathology/lunit_vits16", model_kwargs={"img_size": 448})
    with pytest.raises(UserError, match="cannot have random weights; leave `pretrained` true"):
        load_encoder("eva:pathology/mahmood_uni2_h", pretrained=False)
    with pytest.raises(UserError, match="timm cannot build .*AssertionError"):
        load_encoder(
            "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY | {"num_heads": 5}
        )


def test_a_truncated_file_is_an_error(tmp_path):
    weights = save_tiny_model(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a complete safetensors file") as caught:
        load_encoder(f"local-dir:{weights.parent}")
    assert "\n" not in str(caught.value)


def test_what_eva_cannot_load_is_an_error(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"eva cannot build eva:pathology/mahmood_uni.*HF_TOKEN"):
        load_encoder("eva:pathology/mahmood_uni")


@pytest.mark.parametrize("module", [load, folder])
def test_the_examples_run_in_an_empty_folder(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
