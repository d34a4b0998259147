"""A teacher in float8, on a CPU, which multiplies in it slowly; torchao asks for a GPU that can.

torchao is not among the packages of the tests: transformers imports it into each process.
"""

import pytest
import torch
from helpers import save_tiny_model
from torch.nn.functional import cosine_similarity

from g2l_plugin.encoders import float8
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError


@pytest.fixture
def new_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def test_linear_layers_compute_in_float8(tmp_path, monkeypatch, new_gpu):
    pytest.importorskip("torchao", reason="pip install 'g2l-plugin[float8]'")
    source = f"local-dir:{save_tiny_model(tmp_path / 'model')}"
    encoder = load_encoder(source, dtype="float8").eval()
    monkeypatch.undo()
    exact = load_encoder(source).eval()
    blocks = encoder.model.blocks
    assert all(block.mlp.fc1.weight.qdata.dtype == torch.float8_e4m3fn for block in blocks)
    assert encoder.model.norm.weight.dtype == torch.bfloat16
    assert encoder.provenance == exact.provenance
    assert encoder.count_parameters() == exact.count_parameters()
    assert encoder.count_flops(32) == exact.count_flops(32)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = encoder(images).float(), exact(images)
    assert not torch.equal(found, expected.bfloat16().float())
    assert cosine_similarity(found, expected).min() > 0.99


@pytest.mark.parametrize("capability", [None, (8, 0)])
def test_without_a_gpu_that_has_float8_it_says_so(tmp_path, monkeypatch, capability):
    monkeypatch.setattr(float8, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(UserError, match="needs a GPU that computes in it: .* Use bfloat16"):
        load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'model')}", dtype="float8")


def test_without_torchao_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'g2l-plugin\[float8\]'"):
        load_encoder("hf-hub:org/not-asked-for", dtype="float8")
