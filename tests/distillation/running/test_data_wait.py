import time
from types import SimpleNamespace

import pytest
import torch

from g2l_plugin.distillation.running import data_wait
from g2l_plugin.distillation.running.data_wait import DataWait, WaitClock


@pytest.fixture
def now(monkeypatch):
    """A clock that advances when the test says so."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(data_wait, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


class Run:
    """What the callback sees of a trainer and a module."""

    device = torch.device("cpu")
    train_dataloader = SimpleNamespace(num_workers=3)

    def __init__(self, callback, now):
        self.callback, self.now, self.logged = callback, now, []
        callback.on_train_start(self, self)

    def log_from_host(self, name, value):
        self.logged.append((name, pytest.approx(value)))

    def steps(self, n, wait, work, after=0.0):
        for _ in range(n):
            self.now.seconds += wait
            batch = torch.empty(8)
            self.callback.on_train_batch_start(self, self, batch, 0)
            self.now.seconds += work
            self.callback.on_train_batch_end(self, self, None, batch, 0)
            if after:  # a checkpoint
                self.callback.on_save_checkpoint(self, self, {})
                self.now.seconds += after


def test_the_share_is_logged_without_checkpoints_and_validation(now, warned):
    run = Run(DataWait(every_n_steps=50), now)
    run.steps(10, wait=9, work=1)  # a start that is not counted
    run.steps(24, wait=0.05, work=0.95)
    run.steps(1, wait=0.05, work=0.95, after=7)
    now.seconds += 60
    run.callback.on_validation_end(run, run)
    run.steps(25, wait=0.05, work=0.95)
    run.steps(50, wait=0, work=1)
    # The wait after the checkpoint, validation in it, is left out: 49 waits of 50 steps.
    assert run.logged == [("train/data_wait", 49 * 0.05 / (50 - 0.05)), ("train/data_wait", 0.0)]
    assert not warned


def test_a_loader_that_is_too_slow_is_reported_once_with_what_to_change(now, warned):
    run = Run(DataWait(every_n_steps=50), now)
    run.steps(10, wait=0, work=1)
    run.steps(200, wait=0.5, work=0.5)
    assert len(warned) == 1
    assert "the device waits for them 50% of the time" in warned[0]
    assert "gets 8 tiles/s and could process 16" in warned[0]
    assert "N_DATA_WORKERS, now 3 on" in warned[0] and "PACKED_ROOT" in warned[0]


def test_real_seconds_are_measured():
    clock = WaitClock(torch.device("cpu"))
    clock.batch_arrived()  # before the first step nothing is measured
    clock.start()
    time.sleep(0.02)
    clock.batch_arrived()
    time.sleep(0.03)
    clock.step_ended()
    waited, total = clock.read()
    assert 0.02 <= waited <= total - 0.03
    assert clock.read() == (0.0, 0.0)
