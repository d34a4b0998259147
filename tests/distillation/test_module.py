import copy
import dataclasses
import types

import numpy as np
import pytest
import timm
import torch
from eva.core.models.modules.typings import INPUT_BATCH
from helpers import TINY, WIDER, save_tiny_model
from timm.models import save_for_hf
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from g2l_plugin.distillation.losses import LogSumLoss
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.teachers import embed_with_grid
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.views import AugmentedView


@pytest.fixture
def make_module(tmp_path):
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)

    def make(**options):
        options = {
            "teacher": EncoderSource(f"local-dir:{teacher}"),
            "student": EncoderSource(
                "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY
            ),
            "view": AugmentedView(32),
        } | options
        return DistillationModule(**options)

    return make


def embed(module, images):
    return module._embed_with_student(images)[0], module.teachers(images)


def test_nothing_is_loaded_before_configure_model_and_then_once(make_module):
    module = make_module()
    assert not hasattr(module, "teachers") and not hasattr(module, "student")
    copied = copy.deepcopy(module)  # as eva does before it fits
    copied.configure_model()
    teacher, student = copied.teacher, copied.student
    copied.configure_model()
    assert copied.teacher is teacher and copied.student is student
    assert not hasattr(module, "teachers")


def test_the_default_loss_is_the_papers(make_module):
    loss = make_module().loss
    assert isinstance(loss, LogSumLoss)
    assert loss.alpha == 4


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode(make_module):
    module = make_module()
    module.configure_model()
    module.train()
    assert module.student.training and not any(m.training for m in module.teacher.modules())
    assert not any(p.requires_grad for p in module.teacher.parameters())
    optimised = {
        id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]
    }
    expected = {id(p) for part in (module.student, module.objective) for p in part.parameters()}
    assert optimised == expected


def test_the_state_dict_holds_everything_but_the_teacher(make_module):
    module = make_module()
    module.configure_model()
    keys = module.state_dict().keys()
    assert {key.partition(".")[0] for key in keys} == {"student", "objective"}
    assert "objective.parts.0.0.projector.weight" in keys and "student.model.cls_token" in keys
    wrapped = torch.nn.ModuleDict({"outer": module})
    assert not any(key.startswith("outer.teacher") for key in wrapped.state_dict())


def test_teacher_and_student_see_the_same_view_each_with_its_own_normalisation(make_module):
    module = make_module()
    module.configure_model()
    seen = {}
    for name in ("teacher", "student"):
        getattr(module, name).model.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0])
        )
    tiles = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    module.train()
    view = module._make_views(TileBatch.of(tiles))
    assert view.shape == (4, 3, 32, 32)
    embed(module, view)
    for name, given in seen.items():
        encoder = getattr(module, name)
        torch.testing.assert_close(given * encoder.std + encoder.mean, view)
    assert not torch.allclose(seen["teacher"], seen["student"])


def test_labelled_batches_are_accepted(make_module):
    module = make_module()
    module.configure_model()
    module.eval()
    tiles = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        module.validation_step(INPUT_BATCH(tiles, torch.tensor([0, 1]), {}))
        ((_, student, _),) = module._validation
        torch.testing.assert_close(student, module(tiles / 255))


def test_gradients_reach_the_student_and_the_projector_alone(make_module):
    module = make_module()
    module.configure_model()
    student, teacher = embed(module, torch.rand(8, 3, 32, 32))
    module.objective(student, teacher).backward()
    assert module.student.model.cls_token.grad.abs().sum() > 0
    assert module.objective.parts[0][0].projector.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in module.teacher.parameters())


def test_a_checkpoint_of_another_student_is_refused(make_module):
    module, other = make_module(), make_module()
    other.student_source = EncoderSource(
        "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY | {"depth": 3}
    )
    for each in (module, other):
        each.configure_model()
    checkpoint = {"state_dict": other.state_dict(), "g2l": {}}
    with pytest.raises(UserError, match="another student"):
        module.on_load_checkpoint(checkpoint)


def test_a_run_is_resumed_with_its_own_teacher_only(make_module, tmp_path):
    module = make_module()
    module.configure_model()
    record = {"tiles_seen": 8, "seconds": 1.5, "ending": "", "objective": "any"}
    record |= {"start": {}, "alignment": {}, "change": {}}
    provenance = dataclasses.asdict(module.teacher.provenance)
    checkpoint = {
        "state_dict": module.state_dict(),
        "g2l": record | {"teacher": {"provenance": provenance}},
        "g2l_start": {},
    }
    module.on_load_checkpoint(checkpoint)
    assert module.run_state.tiles_seen == 8
    provenance["sha256"] = "f00d"
    with pytest.raises(UserError, match="belongs to a run with another teacher: .* sha256 f00d"):
        module.on_load_checkpoint(checkpoint)


def test_a_model_that_could_not_be_loaded_is_loaded_the_next_time(make_module, tmp_path):
    module = make_module(teacher=EncoderSource(f"local-dir:{tmp_path / 'later'}"))
    with pytest.raises(UserError, match="later"):
        module.configure_model()
    save_tiny_model(tmp_path / "later")
    module.configure_model()
    assert module.teacher.embedding_dim == 32


def test_a_missing_student_is_told_before_the_teacher_is_read(make_module, tmp_path):
    module = make_module(student=EncoderSource(f"local-dir:{tmp_path / 'none'}"))
    with pytest.raises(UserError, match="none"):
        module.configure_model()
    assert not hasattr(module, "teachers")


def test_encoders_that_cannot_be_distilled_are_told_before_training(make_module, tmp_path):
    with pytest.raises(UserError, match="accepts images of 32x32 px, but its views have 64x64 px"):
        make_module(view=AugmentedView(64)).configure_model()
    folder = f"local-dir:{save_tiny_model(tmp_path / 'other')}"
    with pytest.raises(UserError, match="`output` of local-dir.* is patch_tokens"):
        make_module(teacher=EncoderSource(folder, output="patch_tokens")).configure_model()
    with pytest.raises(UserError, match="student's `output` is 'class_and_mean_patch'"):
        make_module(student=EncoderSource(folder, output="class_and_mean_patch")).configure_model()


def test_a_start_that_a_published_model_cannot_hold_is_told_before_training(make_module, tmp_path):
    config = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 1}
    for model, obstacle in (
        (
            ViTModel(ViTConfig(**config, image_size=32, patch_size=8)),
            "layer norm's epsilon is 1e-12",
        ),
        (Dinov2Model(Dinov2Config(**config, qkv_bias=False)), "TransformersNetwork is not a timm"),
    ):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        start = EncoderSource(f"local-dir:{folder}", mean=[0.5] * 3, std=[0.5] * 3)
        with pytest.raises(UserError, match=f"cannot become a published timm model: .*{obstacle}"):
            make_module(student=start).configure_model()
        module = make_module(teacher=start)
        module.configure_model()
        assert module.teacher.embedding_dim == 48


def test_a_teacher_may_be_wider_and_of_another_precision(make_module, tmp_path):
    folder = f"local-dir:{save_tiny_model(tmp_path / 'other')}"
    teacher = EncoderSource(folder, output="class_and_mean_patch", dtype="bfloat16")
    module = make_module(teacher=teacher)
    module.configure_model()
    student, target = embed(module, torch.rand(4, 3, 32, 32))
    assert target[0].shape == (4, 64)
    loss = module.objective(student, target)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_micro_batches_give_the_gradient_of_the_whole_batch(make_module):
    whole, parts = make_module(), make_module(micro_batch_size=3)
    for module in (whole, parts):
        torch.manual_seed(0)
        module.configure_model()
        module.train()
    images = torch.rand(8, 3, 32, 32)
    sizes = []
    parts.student.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    losses = []
    for module in (whole, parts):
        loss = module.objective(*embed(module, images))
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0])
    assert sizes[:3] == [3, 3, 2] and sorted(sizes[3:]) == [2, 3, 3]  # forward, then again
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in parts.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_micro_batches_sum_their_gradients_in_full_precision(make_module):
    images = torch.rand(64, 3, 32, 32)

    def gradient(half, **options):
        torch.manual_seed(0)
        module = make_module(**options)
        module.configure_model()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            student, _ = embed(module.eval(), images)
            loss = (student.float() * target).sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in module.student.parameters()])

    target = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    exact = gradient(False)
    whole, parts = (
        ((gradient(True, **options) - exact).norm() / exact.norm()).item()
        for options in ({}, {"micro_batch_size": 1})
    )
    assert parts < 1.2 * whole


def test_a_micro_batch_holds_a_tile(make_module):
    with pytest.raises(UserError, match="`micro_batch_size` is 0"):
        make_module(micro_batch_size=0)


def test_several_teachers_have_a_projector_each(make_module, tmp_path):
    other = EncoderSource(f"local-dir:{save_tiny_model(tmp_path / 'other')}")
    module = make_module(further_teachers=[other], teacher_weights=[2, 1], widths=[16])
    module.configure_model()
    student, teachers = embed(module, torch.rand(8, 3, 32, 32))
    assert [teacher.shape[1] for teacher in teachers] == [
        module.teacher.embedding_dim,
        other.load().embedding_dim,
    ]
    module.objective(student, teachers).backward()
    shapes = [
        [tuple(part.projector.weight.shape) for part in nested] for nested in module.objective.parts
    ]
    assert shapes == [[(t.shape[1], 16), (t.shape[1], 32)] for t in teachers]
    assert all(p.grad.abs().sum() > 0 for p in module.objective.parameters())
    assert all(p.grad is None for p in module.teachers.parameters())


@pytest.mark.parametrize(("pretrained", "given", "frozen"), [
    (False, None, False), (True, None, True), (True, False, False), (False, True, True)
])  # fmt: skip
def test_batch_norms_of_a_pretrained_start_keep_their_statistics(
    make_module, tmp_path, pretrained, given, frozen
):
    model = timm.create_model("test_resnet.r160_in1k", num_classes=0)
    save_for_hf(model, str(tmp_path / "start"), safe_serialization=True)
    source = EncoderSource(f"local-dir:{tmp_path / 'start'}", pretrained=pretrained)
    module = make_module(student=source, freeze_batch_norm=given)
    module.configure_model()
    # Lightning may set the mode of the module, and an evaluation that of the student alone.
    for train in (module.train, module.student.train):
        norms = [m for m in module.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and all(norm.training != frozen for norm in norms)
        assert module.student.training
        module.eval()
        train()
    before = norms[0].running_mean.clone()
    module._embed_with_student(torch.rand(4, 3, 32, 32))
    assert torch.equal(norms[0].running_mean, before) == frozen
    module.eval()
    assert not any(part.training for part in module.student.modules())


def test_tiles_that_devices_repeat_are_validated_once(make_module, monkeypatch):
    module = make_module()
    module.configure_model()
    module.eval()

    class Tiles(TileDataset):
        def __init__(self):
            pass

        def patients(self, numbers):
            return np.array(["a", "a", "b", "b", "c", "c"])[numbers]

    datasets = types.SimpleNamespace(val=Tiles())
    trainer = types.SimpleNamespace(
        datamodule=types.SimpleNamespace(datasets=datasets), global_step=0, world_size=1
    )
    monkeypatch.setattr(DistillationModule, "trainer", trainer)
    monkeypatch.setattr(module, "all_gather", lambda tensor, sync_grads: tensor[None])
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    tiles = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    found = {}
    for name, numbers in (("once", range(6)), ("repeated", [4, 2, 0, 5, 3, 1, 4, 2])):
        numbers = np.array(numbers)
        with torch.no_grad():
            for place, part in enumerate(np.array_split(numbers, 2)):
                module.validation_step(TileBatch(tiles[part], part), place)
            module.on_validation_epoch_end()
        module._validation_teachers.clear()
        found[name] = {key: value.item() for key, value in logged.items()}
        assert module.run_state.alignment["tiles"] == 6
        assert module.run_state.alignment["patients"] == 3
    assert found["repeated"] == pytest.approx(found["once"], rel=1e-4, nan_ok=True)


def test_patch_tokens_are_distilled_beside_the_class_token(make_module, tmp_path):
    folder = tmp_path / "convolutional"  # 2x2 places where the student has 4x4
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=0)
    save_for_hf(network, str(folder), safe_serialization=True)
    further = [EncoderSource(f"local-dir:{folder}")]
    grads = []
    for micro_batch_size in (None, 3):
        module = make_module(
            patch_weight=0.5, further_teachers=further, micro_batch_size=micro_batch_size
        )
        torch.manual_seed(0)
        module.configure_model()
        views = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        embedding, grid = module._embed_with_student(views, True)
        assert grid.shape == (8, 32, 4, 4)
        torch.testing.assert_close(embedding, module.student(views))
        tokens = module.student.model.forward_features(
            (views - module.student.mean) / module.student.std
        )
        torch.testing.assert_close(grid[:, :, 1, 2], tokens[:, 1 + 4 + 2])
        grids = [embed_with_grid(teacher, views)[1] for teacher in module.teachers.encoders]
        assert [each.shape for each in grids] == [(8, 48, 4, 4), (8, 512, 1, 1)]
        module.patch_objective(grid, grids).backward()
        grads.append(module.student.model.blocks[0].mlp.fc1.weight.grad)
        assert all(p.weight.grad.any() for p in module.patch_objective.projectors)
    assert grads[0].any()
    torch.testing.assert_close(*grads)


def test_settings_that_exclude_patch_tokens_are_told(make_module, tmp_path):
    with pytest.raises(UserError, match="`patch_weight` is -1"):
        make_module(patch_weight=-1.0)
    with pytest.raises(UserError, match="`teacher_cache` keeps embeddings, and no patch tokens"):
        view = AugmentedView(32, n_views=2)
        make_module(patch_weight=1.0, view=view, teacher_cache=str(tmp_path))


def test_teachers_that_the_devices_use_together_have_no_cache(make_module, tmp_path):
    with pytest.raises(UserError, match="the devices use the teachers together, but"):
        make_module(
            shard_teachers=True, view=AugmentedView(32, n_views=1), teacher_cache=str(tmp_path)
        )


def test_float8_is_for_whole_teachers(make_module):
    with pytest.raises(UserError, match="A student in float8 cannot be trained"):
        make_module(student=EncoderSource("scratch:vits14", dtype="float8"))
    with pytest.raises(UserError, match="cannot be divided between devices"):
        make_module(shard_teachers=True, teacher=EncoderSource("demo:teacher", dtype="float8"))


@pytest.mark.parametrize("projector", ["rotation", "learned_rotation"])
@pytest.mark.parametrize("options", [{"widths": [8]}, {"normalize_teacher": False}])
def test_a_rotation_has_no_settings_of_the_linear_projector(make_module, projector, options):
    with pytest.raises(UserError, match="are settings of `projector: linear`"):
        make_module(projector=projector, **options)
