import pytest
import torch
from helpers import WIDER, save_tiny_model

from g2l_plugin.distillation.teachers import Teachers
from g2l_plugin.encoders.load import EncoderSource


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_computes_in_the_precision_of_its_weights(tmp_path, dtype):
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    teachers = Teachers([EncoderSource(f"local-dir:{teacher}", dtype=dtype)])
    (encoder,), images, mixed = teachers.encoders, torch.rand(2, 3, 32, 32), []
    encoder.register_forward_pre_hook(lambda *_: mixed.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = teachers(images)
    assert mixed == [dtype == "float32"]
    with torch.no_grad():
        torch.testing.assert_close(found.float(), encoder(images).float(), rtol=0.05, atol=0.05)
