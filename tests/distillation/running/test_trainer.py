import csv
import functools
import gc
import json
import multiprocessing.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from eva.core import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, Interface
from eva.core.trainers import Trainer
from helpers import TINY, WIDER, damage, save_tiny_model
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import Dataset

from g2l_plugin.distillation.beyond.rotation import RotationObjective
from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.losses import MeanSquaredErrorLoss
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running import trainer as trainer_module
from g2l_plugin.distillation.running.loss_guard import LossGuard
from g2l_plugin.distillation.running.progress import DistillationProgressBar
from g2l_plugin.distillation.running.run_checkpoint import RunCheckpoint
from g2l_plugin.distillation.running.teacher_cache import TeacherCache
from g2l_plugin.distillation.running.trainer import KDTrainer
from g2l_plugin.distillation.schedule import CosineSchedule, LossEarlyStopping
from g2l_plugin.distillation.teachers import Teachers
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.before_after import DistillationEvaluation
from g2l_plugin.metrics.knn import KNNVoting
from g2l_plugin.metrics.robustness import RobustnessIndex
from g2l_plugin.publishing.callback import PublishStudent
from g2l_plugin.publishing.publish import publish_run
from g2l_plugin.slides.data_module import TileDataModule
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.views import AugmentedView


class Tiles(Dataset):
    """24 random tiles in two classes."""

    def __init__(self, n=24, fill=None):
        generator = torch.Generator().manual_seed(n)
        self.tiles = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.fill = fill

    def prepare_data(self):
        pass

    def setup(self):
        pass

    def __len__(self):
        return len(self.tiles)

    def filename(self, index):
        return f"{index}.png"

    def __getitem__(self, index):
        tile = self.tiles[index] if self.fill is None else torch.full((3, 32, 32), self.fill)
        return tile, torch.tensor(index % 2), {}


@pytest.fixture
def make_run(tmp_path):
    """Makes trainer, module and data of a run of two steps an epoch."""
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)

    def make(
        max_steps=4,
        callbacks=(),
        tiles=None,
        lr=1e-3,
        model=None,
        repo_id=None,
        force=True,
        onnx=False,
        t_max=4,
        **options,
    ):
        torch.manual_seed(0)
        trainer = KDTrainer(
            default_root_dir=str(tmp_path / "logs"),
            max_steps=max_steps,
            accelerator="cpu",
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            log_every_n_steps=1,
            enable_model_summary=False,
            logger=[TensorBoardLogger(str(tmp_path / "logs"), name="")],
            callbacks=[
                DistillationProgressBar(1),
                RunCheckpoint(every_n_train_steps=2),
                *callbacks,
                PublishStudent(repo_id=repo_id, force=force, onnx=onnx),
            ],
            **{"val_check_interval": 2, "checkpoint_type": "last"} | options,
        )
        module = DistillationModule(
            teacher=EncoderSource(f"local-dir:{teacher}"),
            student=EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY),
            optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.05),
            lr_scheduler=lambda o: CosineSchedule(o, T_max=t_max),
            **{"view": AugmentedView(32, flip_prob=0, color_jitter_prob=0, blur_prob=0)}
            | (model or {}),
        )
        loader = DataLoader(
            batch_size=12, num_workers=0, prefetch_factor=None, persistent_workers=False
        )
        data = (TileDataModule if isinstance(tiles, TileDataset) else DataModule)(
            datasets=DatasetsSchema(train=Tiles() if tiles is None else tiles, val=Tiles(10)),
            dataloaders=DataloadersSchema(train=loader, val=loader),
        )
        return trainer, module, data

    return make


@pytest.fixture
def slide_tiles(tmp_path, write_slide):
    """Makes 32 px tiles of two slides, of which one may be damaged after it was indexed."""
    for number in range(2):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 256 + 32 * number)

    def make(**options):
        return TileDataset(
            str(tmp_path / "slides"),
            width=32,
            height=32,
            min_sharpness=0,
            index_dir=str(tmp_path / "index"),
            **options,
        )

    return make


def student_folder(trainer):
    """Where the run's student was published."""
    (publish,) = (part for part in trainer.callbacks if isinstance(part, PublishStudent))
    return publish.student_folder


def run_folder(tmp_path):
    (folder,) = (tmp_path / "logs").glob("*/run_0")
    return folder


def test_a_run_publishes_and_says_so_last(make_run, tmp_path, capsys):
    report = DistillationEvaluation(
        Tiles(), Tiles(16), metrics=[KNNVoting(3), RobustnessIndex([3])], save_start=True
    )
    Interface().fit(*make_run(callbacks=[report]))
    folder = run_folder(tmp_path)

    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert {key.partition(".")[0] for key in checkpoint["state_dict"]} == {"student", "objective"}
    assert checkpoint["g2l"]["tiles_seen"] == 48
    assert checkpoint["g2l"]["finished"] is True
    assert (
        checkpoint["g2l"]["teacher"]["provenance"]["source"] == f"local-dir:{tmp_path / 'teacher'}"
    )

    student = timm.create_model(f"local-dir:{folder / 'student'}", pretrained=True)
    for key, value in student.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"student.model.{key}"], value)

    scalars = EventAccumulator(str(folder)).Reload()
    values = {tag: [e.value for e in scalars.Scalars(tag)] for tag in scalars.Tags()["scalars"]}
    assert values["train/lr"] == pytest.approx([1e-3, 8.535534e-4, 5e-4, 1.464466e-4])
    assert values["train/weight_decay"] == pytest.approx(
        [0.05, 0.0426777, 0.025, 0.0073223], rel=1e-4
    )
    assert len(values["train/loss"]) == 3  # known a step later
    for name in ("val/cka", "val/cosine", "train/tiles_per_second"):
        assert values[name]

    results = json.loads((folder.parent / "results.json").read_text())["metrics"]["val"][0]
    evaluation = json.loads((folder / "evaluation.json").read_text())["encoders"]
    assert list(evaluation) == ["teacher", "student before", "student after"]
    assert evaluation["teacher"]["values"]["LinearCKA"] == pytest.approx(1)
    assert set(evaluation["teacher"]["undefined"]) == {"RobustnessIndex/k=3", "PathoROBIndex/k=3"}
    start = timm.create_model(f"local-dir:{folder / 'start'}", pretrained=True)
    assert not torch.equal(start.cls_token, student.cls_token)
    card = " ".join((folder / "student" / "README.md").read_text().split())
    start_and_end = f"{values['val/cka'][0]:.4f} | {results['val/cka']['mean']:.4f} |"
    assert f"| unbiased linear CKA with the embeddings of the teacher | {start_and_end}" in card
    assert f"{evaluation['student after']['values']['LinearCKAUnbiased']:.4f}" in card
    assert "48 augmented tiles in 4 steps" in card

    *_, student_line, load_line, benchmark_line = capsys.readouterr().out.splitlines()
    assert student_line.endswith(str(folder / "student"))
    assert f"timm.create_model('local-dir:{folder / 'student'}', pretrained=True)" in load_line
    assert "MODEL_NAME=g2l/student" in benchmark_line and "IN_FEATURES=32" in benchmark_line


def test_eva_holds_one_teacher_and_one_student_at_a_time(make_run, monkeypatch):
    alive = []
    embed = DistillationModule._embed_with_student

    def spy(self, *args):
        gc.collect()
        alive.append(sum(isinstance(o, Encoder) for o in gc.get_objects()))
        return embed(self, *args)

    monkeypatch.setattr(DistillationModule, "_embed_with_student", spy)
    Interface().fit(*make_run(max_steps=2))
    assert set(alive) == {2}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_run, tmp_path):
    trainer, whole, data = make_run(max_steps=4)
    trainer.fit(whole, datamodule=data)
    trainer, first, data = make_run(max_steps=2)
    trainer.fit(first, datamodule=data)
    checkpoint = f"{trainer.log_dir}/checkpoints/last.ckpt"
    trainer, second, data = make_run(max_steps=4, resume=checkpoint)
    trainer.fit(second, datamodule=data)
    assert second.run_state.tiles_seen == whole.run_state.tiles_seen == 48
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, msg=key)
    assert not torch.equal(first.student.model.cls_token, second.student.model.cls_token)


def test_a_run_that_goes_on_with_more_steps_trains_on_their_cosine(make_run, tmp_path, monkeypatch):
    def config(steps, lr=1e-3):
        trainer = {"init_args": {"max_steps": steps}}
        return {"trainer": trainer, "model": {"optimizer": {"lr": lr}}, "data": {}}

    monkeypatch.setattr(trainer_module.upstream, "submitted_config", lambda: config(4))
    trainer, first, data = make_run(max_steps=4, resume="auto")
    trainer.fit(first, datamodule=data)
    folder = run_folder(tmp_path)
    (folder.parent / "results.json").touch()
    monkeypatch.setattr(trainer_module.upstream, "submitted_config", lambda: config(8))
    trainer, second, data = make_run(max_steps=8, resume="auto", t_max=8)
    assert run_folder(tmp_path) == folder
    trainer.fit(second, datamodule=data)
    scalars = EventAccumulator(str(folder)).Reload().Scalars("train/lr")
    # By step: two files of events that begin in the same second are read in any order.
    by_step = sorted(scalars, key=lambda event: event.step)
    assert [event.value for event in by_step][-4:] == pytest.approx(
        [5e-4, 3.0866e-4, 1.46447e-4, 3.806e-5], rel=1e-4
    )
    assert not torch.equal(first.student.model.cls_token, second.student.model.cls_token)
    assert second.run_state.resumed == ("step 4: trainer.max_steps 4 → 8",)
    card = (folder / "student" / "README.md").read_text()
    assert "in 8 steps" in card and "step 4: trainer.max_steps 4 → 8" in card
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert checkpoints == {"config.yaml", "last.ckpt", "step=00000006.ckpt", "step=00000008.ckpt"}

    monkeypatch.setattr(trainer_module.upstream, "submitted_config", lambda: config(8, lr=0.1))
    last = str(folder / "checkpoints" / "last.ckpt")
    trainer, third, data = make_run(max_steps=9, resume=last)
    with pytest.raises(UserError, match=r"model\.optimizer\.lr 0\.001 → 0\.1"):
        trainer.fit(third, datamodule=data)


def test_what_a_resumed_run_may_not_change_is_refused_in_python_too(make_run, slide_tiles):
    trainer, first, data = make_run(max_steps=2, tiles=slide_tiles())
    trainer.fit(first, datamodule=data)
    last = f"{trainer.log_dir}/checkpoints/last.ckpt"

    def resumed(match, change=lambda data: None, **options):
        trainer, module, data = make_run(max_steps=4, tiles=slide_tiles(), resume=last, **options)
        change(data)
        with pytest.raises(UserError, match=match):
            trainer.fit(module, datamodule=data)

    resumed("another objective.*LogSum.*MeanSquared", model={"loss": MeanSquaredErrorLoss()})
    resumed(r"`base_lrs` \[0\.001\]; now it is \[0\.1\]", lr=0.1)
    resumed("`seed` 42; now it is 7", lambda data: setattr(data, "seed", 7))
    resumed(
        "`batch_size` 12; now it is 6",
        lambda data: setattr(data.dataloaders.train, "batch_size", 6),
    )


def test_a_run_without_a_step_publishes_nothing(make_run, tmp_path):
    trainer, module, data = make_run(limit_train_batches=0)
    with pytest.raises(UserError, match="ended without a step.*BATCH_SIZE"):
        trainer.fit(module, datamodule=data)
    assert not list(tmp_path.rglob("last.ckpt")) and not list(tmp_path.rglob("logs/*/*/student"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 0}, "MAX_STEPS"),
        ({"devices": 0}, "The trainer cannot be made.*NUM_DEVICES"),
        ({"accelerator": "gpu" if not torch.cuda.is_available() else "x"}, "ACCELERATOR"),
        ({"precision": "16-true"}, "precision is 16-true.*Expected 32-true, bf16-mixed, 16-mixed"),
        ({"precision": "half"}, "PRECISION"),
    ],
)
def test_settings_with_which_nothing_can_be_trained_are_refused_at_once(options, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        KDTrainer(default_root_dir=str(tmp_path), **options)
    assert "\n" not in str(error.value)


def test_an_optimizer_that_cannot_be_made_is_refused_before_weights_are_read(make_run):
    with pytest.raises(UserError, match="Invalid learning rate: -1.*LR_VALUE"):
        make_run(lr=-1)


def test_batch_norms_of_one_tile_are_an_error_in_one_line(make_run):
    trainer, module, data = make_run()
    data.dataloaders.train.batch_size = 1
    with pytest.raises(UserError, match="one tile, and batch norms need two.*rotation"):
        trainer.fit(module, datamodule=data)


@pytest.mark.parametrize("projector", ["rotation", "learned_rotation"])
def test_a_rotation_is_fitted_before_the_first_step_and_not_again(projector, make_run, slide_tiles):
    options = {"projector": projector, "patch_weight": 0.5}
    fitted = []
    spies = {"tiles": slide_tiles(), "model": options | {"loss": MeanSquaredErrorLoss()}}
    with pytest.MonkeyPatch.context() as patch:
        fit = RotationObjective.fit

        def spy(self, student, *rest):
            fitted.append(len(student))
            fit(self, student, *rest)

        patch.setattr(RotationObjective, "fit", spy)
        trainer, whole, data = make_run(max_steps=4, **spies)
        trainer.fit(whole, datamodule=data)
        assert fitted == [len(spies["tiles"])]
        trainer, first, data = make_run(max_steps=2, **spies)
        trainer.fit(first, datamodule=data)
        checkpoint = f"{trainer.log_dir}/checkpoints/last.ckpt"
        trainer, second, data = make_run(max_steps=4, resume=checkpoint, **spies)
        trainer.fit(second, datamodule=data)
    assert len(fitted) == 2
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, msg=key)
    values = EventAccumulator(str(trainer.log_dir)).Reload()
    assert values.Scalars("val/cka")


def test_a_run_resumed_within_an_epoch_sees_the_tiles_that_it_has_not_seen(
    make_run, slide_tiles, monkeypatch
):
    seen = []
    step = DistillationModule.training_step

    def spy(self, batch, *args, **kwargs):
        seen.append(batch.tiles.clone())
        return step(self, batch, *args, **kwargs)

    monkeypatch.setattr(DistillationModule, "training_step", spy)
    trainer, whole, data = make_run(max_steps=9, tiles=slide_tiles())
    trainer.fit(whole, datamodule=data)
    batches_in_epoch = trainer.num_training_batches
    assert 4 < batches_in_epoch < 9  # stops within the first epoch and ends in the second
    uninterrupted = list(seen)
    seen.clear()
    trainer, first, data = make_run(max_steps=4, tiles=slide_tiles())
    trainer.fit(first, datamodule=data)
    checkpoint = f"{trainer.log_dir}/checkpoints/last.ckpt"
    trainer, second, data = make_run(max_steps=9, resume=checkpoint, tiles=slide_tiles())
    trainer.fit(second, datamodule=data)
    assert len(seen) == len(uninterrupted) == 9
    assert all(torch.equal(a, b) for a, b in zip(seen, uninterrupted, strict=True))
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_tiles_that_could_not_be_read_are_listed_with_the_run(make_run, slide_tiles, tmp_path):
    tiles = slide_tiles(max_lost=0.5)
    tiles.prepare_data()
    damage(tmp_path / "slides" / "1.tiff", 0, [0])
    trainer, module, data = make_run(tiles=tiles)
    trainer.fit(module, datamodule=data)
    assert (student_folder(trainer) / "model.safetensors").is_file()
    lost = list(csv.DictReader((run_folder(tmp_path) / "lost_tiles.csv").open()))
    assert lost
    for row in lost:
        assert row["slide"] == str(tmp_path / "slides" / "1.tiff")
        assert int(row["x"]) < 128 and int(row["y"]) < 128


def test_a_missing_checkpoint_is_an_error(make_run):
    trainer, module, data = make_run(resume="/no/such.ckpt")
    with pytest.raises(UserError, match="checkpoint /no/such.ckpt does not exist.*RESUME"):
        trainer.fit(module, datamodule=data)


def test_a_failed_upload_is_reported_once_the_run_is_whole(make_run, tmp_path, capsys):
    with pytest.raises(UserError, match="'nowhere' is no name of a repository on the Hub"):
        Interface().fit(*make_run(repo_id="nowhere"))
    folder = run_folder(tmp_path)
    assert (folder / "student" / "model.safetensors").is_file()
    assert "val/cka" in (folder / "student" / "results.json").read_text()
    assert "Benchmark: MODEL_NAME=g2l/student" in capsys.readouterr().out


def test_figures_are_known_before_the_first_step_and_after_the_last(make_run, monkeypatch, capsys):
    embedded = []
    forward = Teachers.forward

    def spy(self, images, *args):
        embedded.append(len(images))
        return forward(self, images, *args)

    monkeypatch.setattr(Teachers, "forward", spy)
    trainer, module, data = make_run(max_steps=3, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    scalars = EventAccumulator(str(trainer.log_dir)).Reload()
    steps = [event.step for event in scalars.Scalars("val/cka")]
    assert steps == [0, 1, 3]  # Lightning counts the steps before the one that it validates after
    assert sum(embedded) == 3 * 12 + 10  # the steps' tiles, and once the validation tiles
    names = {"val/cka", "val/shared_neighbours", "val/effective_rank", "val/cosine"}
    assert names <= module.run_state.start.keys() & module.run_state.alignment.keys()
    assert module.run_state.alignment["step"] == 3
    assert module.run_state.alignment["tiles"] == 10
    change = module.run_state.alignment["val/cka"] - module.run_state.start["val/cka"]
    assert module.run_state.change["val/cka"][0] == pytest.approx(change)


def test_a_student_worse_than_its_start_is_not_published_unless_forced(make_run, tmp_path, capsys):
    with pytest.raises(UserError, match="further from its teacher.*g2l publish --force"):
        Interface().fit(*make_run(max_steps=10, lr=10.0, force=False))
    assert not (run_folder(tmp_path) / "student").exists()
    assert (run_folder(tmp_path) / "checkpoints" / "last.ckpt").is_file()
    assert capsys.readouterr().out.splitlines()[-1].startswith("Outcome:   CKA with the teacher ")
    with pytest.raises(UserError, match="publish it anyway"):
        publish_run(run_folder(tmp_path))
    published = publish_run(run_folder(tmp_path), force=True)
    assert (
        "**This model is further from its teacher" in (published.folder / "README.md").read_text()
    )


def test_the_best_checkpoint_is_published_and_evaluated(make_run, tmp_path):
    evaluation = DistillationEvaluation(Tiles(), Tiles(), metrics=[KNNVoting(k=3)])
    run = make_run(
        max_steps=8, lr=1.0, val_check_interval=1, checkpoint_type="best", callbacks=[evaluation]
    )
    Interface().fit(*run)
    folder = run_folder(tmp_path)
    scalars = EventAccumulator(str(folder)).Reload()
    values = {step: event.value for step, event in enumerate(scalars.Scalars("val/cka")) if step}
    best = max(values, key=lambda step: values[step])
    assert best < 8  # or the test shows nothing
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == best and "optimizer_states" not in checkpoint
    student = timm.create_model(f"local-dir:{folder / 'student'}", pretrained=True)
    for key, value in student.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"student.model.{key}"], value)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    results = json.loads((folder.parent / "results.json").read_text())["metrics"]["val"][0]
    assert results["val/cka"]["mean"] == pytest.approx(values[best], abs=1e-6)
    assert f"at step {best}:" in (folder / "student" / "README.md").read_text()
    assert json.loads((folder / "evaluation.json").read_text())["step"] == best


def test_a_run_writes_onnx_if_it_is_asked_for(make_run, monkeypatch):
    def export(folder):
        (folder / "model.onnx").write_text("a graph")

    monkeypatch.setattr("g2l_plugin.publishing.publish.export_onnx", export)
    trainer, module, data = make_run(onnx=True)
    trainer.fit(module, data)
    (card,) = Path(trainer.default_root_dir).rglob("student/README.md")
    assert "model.onnx" in card.read_text() and (card.parent / "model.onnx").is_file()


def test_early_stop_ends_a_run_that_publishes_all_the_same(make_run):
    trainer, module, data = make_run(
        max_steps=50, callbacks=[LossEarlyStopping(window=2, max_exceedances=0)], lr=10.0
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step < 50
    assert (student_folder(trainer) / "model.safetensors").is_file()


@pytest.mark.parametrize(("queue_size", "stops"), [(8, True), (1000, False)])
def test_a_loss_that_rises_with_its_queue_stops_no_run_until_it_is_full(
    make_run, queue_size, stops
):
    loss = SimilarityKLLoss(queue_size, student_temperature=0.5)
    stop = LossEarlyStopping(window=2, max_exceedances=0)
    guard = LossGuard(window=2, deviations=0.0 if not stops else 1e6)
    trainer, module, data = make_run(
        max_steps=12, callbacks=[stop, guard], lr=1e-9, model={"loss": loss}
    )
    trainer.fit(module, datamodule=data)
    assert (trainer.global_step < 12) is stops


def test_a_loss_that_is_not_a_number_ends_the_run_without_a_student(make_run, tmp_path):
    trainer, module, data = make_run(tiles=Tiles(fill=float("nan")))
    with pytest.raises(UserError, match="loss is nan at step 1.*LR_VALUE"):
        trainer.fit(module, datamodule=data)
    assert not list((tmp_path / "logs").rglob("student"))


def test_a_run_that_only_its_upload_failed_is_not_trained_again(make_run, tmp_path, monkeypatch):
    stopped = {"max_steps": 50, "lr": 10.0, "resume": "auto"}
    stopped["callbacks"] = [LossEarlyStopping(window=2, max_exceedances=0)]
    with pytest.raises(UserError, match="'nowhere'"):
        Interface().fit(*make_run(repo_id="nowhere", **stopped))
    folder = run_folder(tmp_path)
    before = (folder / "student" / "model.safetensors").read_bytes()
    train = []
    step = DistillationModule.training_step
    monkeypatch.setattr(
        DistillationModule, "training_step", lambda *args: train.append(1) or step(*args)
    )
    Interface().fit(*make_run(**stopped))
    assert not train
    assert run_folder(tmp_path) == folder  # no other session
    assert (folder / "student" / "model.safetensors").read_bytes() == before
    assert (folder.parent / "results.json").is_file()


def test_a_full_disk_at_the_end_is_reported_and_the_run_resumes_later(
    make_run, tmp_path, monkeypatch
):
    save = torch.save

    def fail(state, path):
        if "last.ckpt" in str(path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(state, path)

    monkeypatch.setattr(torch, "save", fail)
    trainer, module, data = make_run(resume="auto")
    with pytest.raises(UserError, match="last.ckpt cannot be written: .*the same command again"):
        trainer.fit(module, datamodule=data)
    monkeypatch.undo()
    trainer, module, data = make_run(resume="auto")
    trainer.fit(module, datamodule=data)
    assert (student_folder(trainer) / "model.safetensors").is_file()
    assert module.run_state.tiles_seen == 48


def test_a_damaged_checkpoint_is_an_error(make_run, tmp_path):
    path = tmp_path / "step=00000002.ckpt"
    path.write_bytes(b"PK nothing")
    trainer, module, data = make_run(resume=str(path))
    with pytest.raises(UserError, match=r"step=00000002.ckpt is damaged.*another in its folder"):
        trainer.fit(module, datamodule=data)


def test_a_cached_teacher_gives_the_losses_of_one_that_is_not(
    make_run, slide_tiles, tmp_path, monkeypatch
):
    computed = []

    def run(**model):
        model["view"] = AugmentedView(32, n_views=1)
        trainer, module, data = make_run(max_steps=12, tiles=slide_tiles(), model=model)
        module.configure_model()
        computed.append(0)
        module.teacher.register_forward_hook(lambda *args: computed.append(computed.pop() + 1))
        trainer.fit(module, datamodule=data)
        events = EventAccumulator(trainer.log_dir).Reload().Scalars("train/loss")
        return [event.value for event in events], trainer.num_training_batches

    uncached, in_epoch = run()
    assert len(uncached) == 11 > in_epoch  # into a second epoch, of the same views
    first, _ = run(teacher_cache=str(tmp_path / "cache"))
    second, _ = run(teacher_cache=str(tmp_path / "cache"))
    other, _ = run(teacher_cache=str(tmp_path / "cache"), loss=MeanSquaredErrorLoss())
    assert second == first == pytest.approx(uncached, rel=1e-5)
    assert first[:in_epoch] == uncached[:in_epoch]
    assert other != first
    # What is left is one batch for the count of FLOPs, and validation.
    assert computed[0] > computed[1] > computed[2] == computed[3]


def test_a_cache_without_a_fixed_number_of_views_is_an_error(make_run, tmp_path):
    with pytest.raises(UserError, match="N_VIEWS"):
        make_run(model={"teacher_cache": str(tmp_path / "cache")})


def test_a_run_is_resumed_with_its_own_tiles_only(make_run, slide_tiles, tmp_path, write_slide):
    trainer, first, data = make_run(max_steps=2, tiles=slide_tiles())
    trainer.fit(first, datamodule=data)
    checkpoint = f"{trainer.log_dir}/checkpoints/last.ckpt"
    trainer, second, data = make_run(
        max_steps=4, tiles=slide_tiles(split="train"), resume=checkpoint
    )
    with pytest.raises(UserError, match="run on other tiles .train.*RESUME=null"):
        trainer.fit(second, datamodule=data)


def test_figures_of_a_run_stay_those_of_its_validation_tiles(make_run, slide_tiles):
    def make(val, **options):
        trainer, module, data = make_run(tiles=slide_tiles(), **options)
        data.datasets = DatasetsSchema(train=data.datasets.train, val=val)
        return trainer, module, data

    trainer, first, data = make(slide_tiles(), max_steps=2)
    trainer.fit(first, datamodule=data)
    checkpoint = f"{trainer.log_dir}/checkpoints/last.ckpt"
    val = slide_tiles(split="val", n_val_patients=1)
    trainer, second, data = make(val, max_steps=4, resume=checkpoint)
    with pytest.raises(UserError, match="run on other tiles .val"):
        trainer.fit(second, datamodule=data)


def test_the_best_of_another_session_does_not_keep_this_one_from_its_own(make_run, tmp_path):
    options = {"val_check_interval": 1, "checkpoint_type": "best"}
    trainer, module, data = make_run(max_steps=2, **options)
    trainer.fit(module, datamodule=data)
    path = f"{trainer.log_dir}/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (s for s in checkpoint["callbacks"].values() if "best" in s)
    state["best"] = 2.0  # no validation reaches it
    torch.save(checkpoint, path)
    trainer, module, data = make_run(max_steps=4, resume=path, **options)
    trainer.fit(module, datamodule=data)
    assert Path(trainer.log_dir, "checkpoints", "best.ckpt").is_file()


def test_a_worker_that_dies_is_reported_and_nothing_is_lost(make_run, slide_tiles, tmp_path):
    trainer, whole, data = make_run(max_steps=9, tiles=slide_tiles())
    data.block_tiles = 8  # so that the worker has not read all tiles when it dies
    trainer.fit(whole, datamodule=data)

    class Kill(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 1:
                for worker in multiprocessing.active_children():
                    worker.kill()
                    time.sleep(0.2)  # the signal of its death would end the step here

    options = {"max_steps": 9, "tiles": slide_tiles(), "resume": "auto"}
    shutil.rmtree(tmp_path / "logs")
    multiprocessing.util.get_temp_dir()  # else the worker has one of its own, and leaves it
    trainer, first, data = make_run(callbacks=[Kill()], **options)
    data.block_tiles = 8
    data.dataloaders.train.num_workers = 1
    data.dataloaders.train.prefetch_factor = 1
    with pytest.raises(UserError, match="^A process that reads tiles died: DataLoader worker"):
        trainer.fit(first, datamodule=data)
    step = first.global_step
    assert step >= 1
    assert (run_folder(tmp_path) / "checkpoints" / f"step={step:08d}.ckpt").is_file()
    trainer, second, data = make_run(**options)
    data.block_tiles = 8
    trainer.fit(second, datamodule=data)
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[/pytorch/third_party/gloo/pair.cc:561] Connection closed by peer"),
            "Another device of the run has ended",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "MICRO_BATCH_SIZE"),
    ],
)
def test_a_device_that_fails_ends_the_others_and_they_say_why(
    make_run, monkeypatch, error, message
):
    trainer, module, data = make_run()
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    launcher.procs = [other]
    monkeypatch.setattr(trainer_module, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(trainer.strategy, "_launcher", launcher)
    monkeypatch.setattr(KDTrainer, "world_size", 2)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Trainer, "fit", fail)
    with pytest.raises(UserError, match=message):
        trainer.fit(module, datamodule=data)
    assert other.wait(timeout=60) == -signal.SIGKILL
    assert not launcher.procs  # or Lightning's watch would kill this process


def test_a_log_that_could_not_be_written_does_not_end_validation_either(
    make_run, monkeypatch, warned, tmp_path
):
    def fail(*args):
        raise OSError(28, "No space left on device")

    class Fill(Callback):
        def on_train_batch_end(self, trainer, *args):
            for name in ("add_event", "flush"):
                monkeypatch.setattr(EventFileWriter, name, fail)

    Interface().fit(*make_run(callbacks=[Fill()]))
    assert any("Logging stops" in message for message in warned)
    assert (run_folder(tmp_path) / "student" / "model.safetensors").is_file()
    assert (run_folder(tmp_path).parent / "results.json").is_file()


def test_the_student_before_is_that_of_the_start_in_a_run_that_goes_on(make_run, tmp_path):
    class Break(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("a power cut")

    def make(*others):
        report = DistillationEvaluation(Tiles(), Tiles(16), metrics=[KNNVoting(3)], save_start=True)
        return make_run(callbacks=[report, *others], resume="auto"), report

    (trainer, module, data), first = make(Break())
    with pytest.raises(RuntimeError, match="a power cut"):
        trainer.fit(module, datamodule=data)
    start = run_folder(tmp_path) / "start" / "model.safetensors"
    before = start.read_bytes()
    (trainer, module, data), second = make()
    trainer.fit(module, datamodule=data)
    assert second.results["student before"] == first.results["student before"]
    assert second.results["student after"]["values"] != first.results["student before"]["values"]
    assert list(second.results) == ["teacher", "student before", "student after"]
    assert start.read_bytes() == before


def test_a_student_is_evaluated_on_the_device_that_trained_it(make_run):
    class Elsewhere(Callback):
        def on_fit_end(self, trainer, *args):
            trainer.strategy._root_device = torch.device("meta")

    class Evaluation(DistillationEvaluation):
        def _evaluate(self, name, encoder, *args):
            devices[name] = encoder.mean.device.type
            self._size = {"n_tiles": 16, "n_units": 1}

    devices = {}
    trainer, module, data = make_run(
        max_steps=1, callbacks=[Elsewhere(), Evaluation(Tiles(), Tiles())]
    )
    trainer.fit(module, datamodule=data)
    # Lightning moves a module to the CPU when its training ends.
    assert devices == {"teacher": "cpu", "student before": "cpu", "student after": "meta"}


def test_compiled_encoders_are_published_as_any(make_run, tmp_path):
    def train(**model):
        trainer, module, data = make_run(max_steps=2, model=model)
        with torch.compiler.set_stance("force_eager"):  # compiling takes a compiler, and minutes
            trainer.fit(module, datamodule=data)
        return module, (student_folder(trainer) / "model.safetensors").read_bytes()

    plain, expected = train()
    compiled, found = train(compile=True)
    assert found == expected
    for encoder in (compiled.student, compiled.teacher):
        assert encoder._compiled_call_impl is not None
    assert plain.student._compiled_call_impl is None


def test_a_run_compiles_each_encoder_once_whatever_else_it_embeds(make_run, tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    trainer, module, data = make_run(max_steps=2, model={"compile": True})
    with torch.compiler.set_stance(force_backend=backend):
        trainer.fit(module, datamodule=data)
    assert len(graphs) == 2  # a validation of other sizes, without a gradient, made none


class Waits(TorchDispatchMode):
    """Notes operations whose results the host waits for, where the tensors are a device's."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket._qualified_op_name
        if name in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}:
            self.seen.add(name)
        if name in {"aten::index", "aten::index_put", "aten::index_put_"} and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.seen.add("a mask")
        return operation(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(make_run, slide_tiles, tmp_path, monkeypatch):
    with Waits() as waits:
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert waits.seen == {"aten::_local_scalar_dense", "a mask"}
    waits = Waits()

    def watched(method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            with waits:
                return method(*args, **kwargs)

        return call

    found = []

    def get(*args, original=TeacherCache.get):
        with _disable_current_modes():  # files are read by the host
            held, rows = original(*args)
        found.append(held)
        return held, rows

    monkeypatch.setattr(TeacherCache, "get", get)
    step = watched(DistillationModule.training_step)
    monkeypatch.setattr(DistillationModule, "training_step", step)
    view = AugmentedView(32, color_jitter_prob=1, blur_prob=0.5, n_views=1)
    for seed in (1, 2):  # in another order, the second finds some embeddings of each batch
        model = {"view": view, "widths": [16], "micro_batch_size": 5}
        model |= {"teacher_cache": str(tmp_path / "cache")}
        trainer, module, data = make_run(tiles=slide_tiles(), model=model)
        data.seed = seed
        trainer.fit(module, datamodule=data)
    assert any(0 < held.sum() < len(held) for held in found)
    assert not waits.seen
