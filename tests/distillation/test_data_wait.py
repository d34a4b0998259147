import time
from types import SimpleNamespace

import pytest
import torch

from g2l_plugin.distillation import data_wait
from g2l_plugin.distillation.data_wait import DataWait, WaitClock


@pytest.fixture
def now(monkeypatch):
    """A clock that goes on when it is told."""
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
            self.wait_clock.batch_arrived()
            self.now.seconds += work
            batch = SimpleNamespace(data=torch.empty(8))
            self.callback.on_train_batch_end(self, self, None, batch, 0)
            self.now.seconds += after  # a checkpoint
            self.wait_clock.start()


def test_the_share_is_logged_without_checkpoints_and_validation(now, told):
    run = Run(DataWait(every_n_steps=50), now)
    run.steps(10, wait=9, work=1)  # a start that is not counted
    run.steps(25, wait=0.05, work=0.95, after=7)
    now.seconds += 60
    run.callback.on_validation_end(run, run)
    run.steps(25, wait=0.05, work=0.95)
    run.steps(50, wait=0, work=1)
    assert run.logged == [("train/data_wait", 0.05), ("train/data_wait", 0.0)]
    assert not told


def test_a_loader_that_is_too_slow_is_told_once_with_what_to_change(now, told):
    run = Run(DataWait(every_n_steps=50), now)
    run.steps(10, wait=0, work=1)
    run.steps(200, wait=0.5, work=0.5)
    assert len(told) == 1
    assert "50% of the time the device waits" in told[0]
    assert "gets 8 tiles/s and could take 16" in told[0]
    assert "N_DATA_WORKERS, now 3 of" in told[0] and "PACKED_ROOT" in told[0]


def test_real_seconds_are_measured():
    clock = WaitClock(torch.device("cpu"))
    clock.batch_arrived()  # before the first step nothing is measured
    clock.start()
    time.sleep(0.02)
    clock.batch_arrived()
    time.sleep(0.03)
    clock.step_ended()
    waited, total = clock.take()
    assert 0.02 <= waited <= total - 0.03
    assert clock.take() == (0.0, 0.0)
