import contextlib
import math

import numpy as np
import pytest
import torch

from g2l_plugin.distillation.running.loss_guard import LossGuard
from g2l_plugin.distillation.running.step_sync import StepSync
from g2l_plugin.errors import UserError
from g2l_plugin.slides.batch import TileBatch


class Run:
    """What the guard sees of a trainer and a module."""

    def __init__(self, folder):
        self.step_sync, self.loss_settled = StepSync(), True
        self.log_dir, self.global_step = str(folder), 0
        self.world_size, self.global_rank = 1, 0
        self.checkpoint_callbacks, self.train_dataloader = [], None

    def step(self, guard, loss, tile=0):
        loss = torch.tensor(loss)
        self.step_sync.exchange(self.global_step, loss, lambda values: values)
        self.global_step += 1
        batch = TileBatch(torch.empty(1), np.array([tile]))
        guard.on_train_batch_end(self, self, None, batch, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_told_a_step_later_with_its_tiles(tmp_path, value):
    guard, run = LossGuard(), Run(tmp_path)
    run.step(guard, 1.0, tile=10)
    run.step(guard, value, tile=11)
    with pytest.raises(UserError, match=f"loss is {value} at step 2, on the tiles.*bad_batch.csv"):
        run.step(guard, 1.0, tile=12)
    assert (tmp_path / "bad_batch.csv").read_text() == "tile\n11\n"


def test_weights_of_such_a_loss_are_not_saved(tmp_path):
    guard, run = LossGuard(), Run(tmp_path)
    run.step(guard, 1.0)
    guard.on_save_checkpoint(run, run, {"state_dict": {"w": torch.ones(2)}})
    with pytest.raises(UserError, match="w has values that are not finite after step 1"):
        guard.on_save_checkpoint(run, run, {"state_dict": {"w": torch.tensor([math.inf])}})
    run.step(guard, math.nan, tile=7)
    with pytest.raises(UserError, match="loss is nan at step 2"):
        guard.on_save_checkpoint(run, run, {"state_dict": {}})
    assert (tmp_path / "bad_batch.csv").read_text() == "tile\n7\n"


def test_the_last_step_of_a_run_is_looked_at_too(tmp_path):
    guard, run = LossGuard(), Run(tmp_path)
    run.step(guard, math.nan)
    with pytest.raises(UserError, match="loss is nan at step 1"):
        guard.on_train_end(run, run)


def test_a_loss_that_explodes_is_told(tmp_path):
    guard, run = LossGuard(window=5), Run(tmp_path)
    for loss in [8.1, 8.0, 7.9, 8.0, 8.0, *[7.0] * 5, *[8.1, 7.9] * 5]:
        run.step(guard, loss)
    with pytest.raises(UserError, match=r"has exploded by step \d+: its mean was 8 over.*LR_VALUE"):
        for _ in range(6):
            run.step(guard, 9.0)


def test_it_goes_on_from_a_checkpoint(tmp_path):
    first, second, run = LossGuard(window=2), LossGuard(window=2), Run(tmp_path)
    for _ in range(4):
        run.step(first, 8.0)
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="exploded"):
        for _ in range(3):
            run.step(second, 9.0)


@pytest.mark.parametrize(("devices", "explodes"), [(1, True), (8, False)])
def test_the_losses_of_other_devices_are_not_compared(tmp_path, devices, explodes):
    first, second, run = LossGuard(window=2), LossGuard(window=2), Run(tmp_path)
    first.on_train_start(run, run)
    for _ in range(4):
        run.step(first, 1.0)
    second.load_state_dict(first.state_dict())
    run.world_size = devices
    second.on_train_start(run, run)
    with pytest.raises(UserError, match="exploded") if explodes else contextlib.nullcontext():
        for _ in range(5):
            run.step(second, 3.0)
