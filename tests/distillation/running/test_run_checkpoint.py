import os
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from loguru import logger

from g2l_plugin.distillation.running.atomic_checkpoint import CheckpointWriteError
from g2l_plugin.distillation.running.run_checkpoint import RunCheckpoint
from g2l_plugin.distillation.running.step_sync import StepSync, SyncedStep
from g2l_plugin.errors import UserError


class Run:
    """What the callback sees of a trainer and a module."""

    is_global_zero, ckpt_path, loggers, world_size, local_rank = True, None, (), 1, 0
    strategy = SimpleNamespace(barrier=lambda name: None, broadcast=lambda value: value)
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())

    def __init__(self, folder):
        self.log_dir, self.global_step, self.full = str(folder), 0, False
        self.step_sync = StepSync()
        self.bad, self.training = False, True
        self.batches = 0
        self.train_dataloader = SimpleNamespace(state_dict=lambda: {"batches": self.batches})

    def save_checkpoint(self, path, weights_only):
        if self.bad:
            raise UserError("The loss is nan.")
        if self.full:
            raise CheckpointWriteError(f"{path} cannot be written.")
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(self.global_step))
        os.utime(path, (self.global_step, self.global_step))

    def step(self, callback, n=1, last=None):
        for _ in range(n):
            self.global_step += 1
            self.batches += 1
            self.step_sync.last = last
            callback.on_train_batch_end(self, self, None, None, 0)


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**options):
        callback, run = RunCheckpoint(**options), Run(tmp_path)
        callback.dirpath = str(tmp_path / "checkpoints")
        callback.on_train_start(run, run)
        made.append((callback, run))
        return callback, run

    yield make
    for callback, run in reversed(made):  # signals are again what they were
        callback.on_train_end(run, run)


def kept(tmp_path):
    return [int(path.read_text()) for path in sorted((tmp_path / "checkpoints").glob("*"))]


def test_it_saves_every_so_many_steps_and_keeps_the_newest(make, tmp_path):
    callback, run = make(every_n_train_steps=3, keep=2)
    run.step(callback, 2)
    assert kept(tmp_path) == []
    run.step(callback, 11)
    assert kept(tmp_path) == [9, 12]
    assert callback.last_model_path.endswith("step=00000012.ckpt")
    callback.on_train_end(run, run)


def test_it_wishes_a_checkpoint_when_one_is_old_and_saves_what_all_agreed_on(make, tmp_path):
    callback, run = make(every_n_train_steps=100, every_minutes=1)
    run.step(callback)
    assert not run.step_sync.save_requested
    callback._saved_at -= 61
    run.step(callback)
    assert run.step_sync.save_requested and kept(tmp_path) == []
    run.step(callback, last=SyncedStep(2, 1.0, save=True))
    assert kept(tmp_path) == [3]
    run.step(callback)
    assert not run.step_sync.save_requested
    callback.on_train_end(run, run)


def test_a_wish_is_met_once_though_it_takes_two_steps_to_be_known(make, tmp_path):
    callback, run = make(every_n_train_steps=100, every_minutes=1)
    sync, saved = StepSync(), []
    for _ in range(30):
        if run.global_step in (5, 20):
            callback._saved_at -= 61
        sync.stop_requested = run.step_sync.stop_requested
        sync.save_requested = run.step_sync.save_requested
        sync.exchange(run.global_step, torch.tensor(1.0), lambda x: x)
        run.step(callback, last=sync.last)
        saved += [step for step in kept(tmp_path) if step not in saved]
    assert saved == [8, 23]
    callback.on_train_end(run, run)


def test_a_process_that_lightning_started_leaves_the_status_to_the_first(make, monkeypatch):
    for local_rank, status in ((0, 143), (1, 0)):
        callback, run = make()
        strategy = SimpleNamespace(**vars(run.strategy), cluster_environment=LightningEnvironment())
        run.strategy, run.local_rank = strategy, local_rank
        with pytest.raises(SystemExit) as left:
            run.step(callback, last=SyncedStep(1, 1.0, stop=True))
        assert left.value.code == status
        callback.on_exception(run, run, left.value)


def test_no_device_is_waited_for_to_hear_of_signals(make):
    assert hasattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")  # or it has another name now
    callback, run = make()
    assert run.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None
    callback.on_train_end(run, run)


def test_accumulated_batches_are_saved_after_their_step(make, tmp_path):
    callback, run = make(every_n_train_steps=100)
    run.step(callback)
    run.step_sync.last = SyncedStep(1, 1.0, stop=True)
    callback.on_train_batch_end(run, run, None, None, 0)  # without a step
    assert kept(tmp_path) == []
    with pytest.raises(SystemExit) as left:
        run.step(callback)
    assert left.value.code == 143
    assert kept(tmp_path) == [2]
    callback.on_exception(run, run, left.value)


def test_what_cannot_be_written_is_told_and_the_run_goes_on(make, tmp_path):
    warned = []
    sink = logger.add(warned.append)
    callback, run = make(every_n_train_steps=2)
    run.step(callback, 2)
    run.full = True
    run.step(callback, 2)
    run.full = False
    run.step(callback, 2)
    assert kept(tmp_path) == [2, 6]
    logger.remove(sink)
    assert "step=00000004.ckpt cannot be written. The run continues. Last checkpoint:" in "".join(
        warned
    )
    callback.on_train_end(run, run)


def test_a_damaged_file_of_a_later_step_does_not_take_the_place_of_a_good_one(make, tmp_path):
    callback, run = make(every_n_train_steps=2, keep=1)
    (tmp_path / "checkpoints").mkdir()
    for name in ("step=00000090.ckpt", ".step=00000092.ckpt.0a1b2c3d.part"):
        path = tmp_path / "checkpoints" / name
        path.write_text("90")
        os.utime(path, (0, 0))
    callback.on_train_start(run, run)
    run.step(callback, 2)
    assert kept(tmp_path) == [2]
    callback.on_train_end(run, run)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("reading", [3]),
        ("reading after validation", [3]),
        ("step", []),
        ("validation", []),
        ("reading within accumulated batches", []),
        ("after the last step", []),
        ("bad", []),
    ],
)
def test_what_ends_a_run_between_two_steps_loses_none(make, tmp_path, where, expected):
    callback, run = make(every_n_train_steps=100)
    run.step(callback, 3)
    if where == "step":
        run.batches += 1
    if where == "reading within accumulated batches":
        callback.on_train_batch_end(run, run, None, None, 0)
    if where == "after the last step":
        callback.on_train_end(run, run)
    if where not in ("reading", "step"):
        callback.on_validation_start(run, run)
        run.training = where != "validation"
        if run.training:
            callback.on_validation_end(run, run)
    run.bad = where == "bad"
    callback.on_exception(run, run, UserError("A process that reads tiles died."))
    assert kept(tmp_path) == expected


@pytest.mark.parametrize(
    "options", [{"every_n_train_steps": 0}, {"every_minutes": 0}, {"keep": 0}], ids=str
)
def test_what_makes_no_sense_is_told(options):
    with pytest.raises(UserError, match="RunCheckpoint has"):
        RunCheckpoint(**options)


def test_the_best_validation_is_kept_over_a_resume_and_nan_is_never_the_best(make, tmp_path):
    callback, run = make(monitor="val/cka")
    run.checkpoint_type, run.state = "best", SimpleNamespace(fn=TrainerFn.FITTING)
    kept = []
    for value in (0.9, float("nan"), 0.5, 0.4, 0.6, 0.55, 0.7):  # the first, before any step
        run.callback_metrics = {"val/cka": torch.tensor(value)}
        callback.on_validation_end(run, run)
        best = tmp_path / "checkpoints" / "best.ckpt"
        kept.append(int(best.read_text()) if best.exists() else None)
        run.step(callback)
        if value == 0.6:
            state, (callback, _) = callback.state_dict(), make(monitor="val/cka")
            callback.load_state_dict(state)
    assert kept == [None, None, 2, 2, 4, 4, 6]
    run.callback_metrics = {}
    with pytest.raises(UserError, match="`monitor` is val/cka. Expected a figure"):
        callback.on_validation_end(run, run)
