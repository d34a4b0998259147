"""A distillation step on a CUDA device that is not there (`fake_cuda.py`).

What such a device cannot show, and why:

- values, so no overflow of half floats, no skipped step of the gradient scaler: fakes have none;
- streams, events, memory and time: nothing runs;
- PyTorch's own order of the backward pass: its engine asks for a CUDA context, so the nodes of the
  graph are called one by one, which a test compares with the engine on the CPU;
- the attention that a GPU chooses: the choice asks for the GPU's properties, so the fused one is
  called by name;
- `compile: true`: a compiler would need the GPU's properties too;
- what surrounds a step: Lightning's trainer looks for the device, and several devices need a
  process group of NCCL. `test_trainer.py` and `test_two_devices.py` run them on the CPU;
- the fit of a rotation and the end of a validation, which wait for the device on purpose.
"""

import copy

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, backward, fake_cuda, to_cuda
from helpers import TINY, WIDER, save_tiny_model
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running.teacher_caches import TeacherCaches
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.planning.step_memory import step_alone
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.views import AugmentedView
from g2l_plugin.transfer import start_copy, to_device

_TILES = 12
_MARGIN = 0.05

_CASES = {
    "plain": {},
    "whole view": {"view": {"color_jitter_prob": 0.8, "blur_prob": 0.5}},
    "micro-batches": {"micro_batch_size": 5},
    "two teachers": {"further_teachers": "second"},
    "widths": {"widths": [8, 16]},
    "rotation": {"projector": "rotation"},
    "learned rotation": {"projector": "learned_rotation"},
    "patch tokens": {"patch_weight": 0.5},
    "queue": {"loss": SimilarityKLLoss(queue_size=30)},
    "teacher cache": {"teacher_cache": "cache"},
}
_PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

# Copies to the device, copies from it, and kernels of a step with its backward pass, in float32 and
# under autocast; counted with torch 2.14 and timm 1.0.31. The copies to it are the places of the
# crop; places and amounts of the colour jitter, places and weights of the blur; of the cache: rows,
# and places of rows to compute, keep, and put in place (2). The copies from it are the loss and
# requests of the step, and what the cache keeps.
_EXPECTED = {
    "plain": (1, 1, 133, 184),
    "whole view": (5, 1, 499, 550),
    "micro-batches": (1, 1, 355, 547),
    "two teachers": (1, 1, 185, 249),
    "widths": (1, 1, 205, 256),
    "rotation": (1, 1, 124, 175),
    "learned rotation": (1, 1, 140, 191),
    "patch tokens": (1, 1, 182, 233),
    "queue": (1, 1, 155, 206),
    "teacher cache": (6, 2, 137, 188),
}


class Tiles:
    """What a cache asks of a dataset."""

    tiles = None

    def __len__(self):
        return 2 * _TILES

    def fingerprint(self):
        return "tiles"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [
        EncoderSource(f"local-dir:{save_tiny_model(folder / str(seed), seed, **size)}")
        for seed, size in enumerate((WIDER, TINY | {"patch_size": 16}))
    ]


@pytest.fixture
def make_module(teachers, tmp_path):
    def make(further_teachers=None, teacher_cache=None, view=None, **options):
        options["view"] = AugmentedView(
            32, **{"color_jitter_prob": 0, "blur_prob": 0, "n_views": 1} | (view or {})
        )
        module = DistillationModule(
            teachers[0],
            EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY),
            further_teachers=teachers[1:] if further_teachers else None,
            **copy.deepcopy(options),  # a loss is moved with its module
        )
        step_alone(module)
        module.configure_model()
        if teacher_cache:
            encoders, settings = module.teachers.encoders, module.view.settings()
            module._caches = TeacherCaches(
                tmp_path, teachers[:1], encoders, settings, "bf16-mixed, cuda", Tiles()
            )
        return module.train()

    return make


def test_the_fake_device_refuses_two_devices_and_notes_waits(monkeypatch):
    with fake_cuda(monkeypatch) as device:
        values, host = torch.ones(4, device=CUDA), torch.ones(4)
        assert (host * 2).tolist() == [2] * 4  # the host's values are real
        read = start_copy(values[to_device(np.arange(2), CUDA)] * 2)
        assert read().shape == (2,) and read().device.type == "cpu"
        assert device.kernels == {"aten::ones": 1, "aten::index": 1, "aten::mul": 1}
        assert (device.copies, device.returns, device.waits) == (1, 1, [])
        for wait in (
            lambda: values.sum().item(),
            lambda: values.cpu(),
            lambda: host.to(CUDA),
            lambda: host.pin_memory().to(CUDA),
            lambda: host.to(CUDA, non_blocking=True),
            lambda: values.copy_(host),
            lambda: torch.empty(4).copy_(values, non_blocking=True),
            lambda: values[torch.tensor([0, 1])],
        ):
            device.reset()
            wait()
            assert len(device.waits) == 1
        for of_unknown_size in (lambda: values[values > 0], values.nonzero):
            device.reset()
            with pytest.raises(DynamicOutputShapeException):  # fakes have no values
                of_unknown_size()
            assert len(device.waits) == 1
        with pytest.raises(RuntimeError, match="same device|two different devices"):
            values + host


@pytest.mark.parametrize("case", ["plain", "micro-batches", "patch tokens"])
def test_the_backward_pass_node_by_node_is_that_of_the_engine(case, make_module, monkeypatch):
    module = make_module(**_CASES[case])
    tiles = torch.randint(0, 256, (_TILES, 3, 40, 40), dtype=torch.uint8)
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    grads = []
    for back in (torch.Tensor.backward, lambda loss: backward(loss, monkeypatch)):
        module.zero_grad()
        module.run_state.tiles_seen = 0
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.training_step(TileBatch(tiles, np.arange(_TILES)))["loss"]
        back(loss)
        grads.append({name: weight.grad for name, weight in trained.items()})
    assert all(grad is not None for grad in grads[0].values())
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        *((case, precision) for case in _CASES for precision in ("32-true", "bf16-mixed")),
        *((case, "16-mixed") for case in ("plain", "micro-batches", "patch tokens")),
    ],
)
def test_a_step_stays_on_the_device_and_does_not_wait_for_it(
    case, precision, make_module, monkeypatch
):
    module = make_module(**_CASES[case])
    dtype = _PRECISIONS[precision]
    autocast = {"dtype": dtype or torch.bfloat16, "enabled": dtype is not None}
    with fake_cuda(monkeypatch) as device:
        to_cuda(module)
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)  # as in the recipe
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        tiles = torch.zeros(_TILES, 3, 40, 40, dtype=torch.uint8, device=CUDA)
        # The second step finds a queue, and some of its tiles in the cache.
        for first in (0, _TILES // 3) if case in ("queue", "teacher cache") else (0,):
            optimizer.zero_grad()
            device.reset()
            with torch.autocast("cuda", **autocast):
                batch = TileBatch(tiles, np.arange(first, first + _TILES))
                loss = module.training_step(batch)["loss"]
            backward(scaler.scale(loss), monkeypatch)
            counted = device.kernels.total()
            scaler.step(optimizer)
            scaler.update()
            assert device.kernels["aten::_fused_adamw_"] == 1
            assert not device.waits
            if module._caches is not None:
                module._caches.flush()
    assert (loss.dtype, loss.device, loss.shape) == (torch.float32, CUDA, ())
    for weight in trained:
        assert (weight.grad.dtype, weight.grad.device) == (torch.float32, CUDA)
        assert weight.grad.shape == weight.shape
    copies, returns, *kernels = _EXPECTED[case]
    assert (device.copies, device.returns) == (copies, returns)
    assert counted == pytest.approx(kernels[dtype is not None], rel=_MARGIN)


@pytest.mark.parametrize("precision", _PRECISIONS)
@pytest.mark.parametrize("case", ["micro-batches", "two teachers"])
def test_a_validation_step_does_not_wait_either(case, precision, make_module, monkeypatch):
    module = make_module(**_CASES[case]).eval()
    dtype = _PRECISIONS[precision]
    with fake_cuda(monkeypatch) as device:
        to_cuda(module)
        tiles = torch.zeros(_TILES, 3, 40, 40, dtype=torch.uint8, device=CUDA)
        device.reset()
        with torch.no_grad(), torch.autocast("cuda", dtype or torch.bfloat16, dtype is not None):
            module.validation_step(TileBatch(tiles, np.arange(_TILES)))
    ((_, student, targets),) = module._validation
    assert {embeddings.device for embeddings in (student, *targets)} == {CUDA}
    assert (device.waits, device.copies, device.returns) == ([], 0, 0)
