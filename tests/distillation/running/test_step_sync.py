import torch

from g2l_plugin.distillation.running.step_sync import StepSync, SyncedStep


def two_devices(values):
    """The mean with a device whose loss is 4 and that requests nothing."""
    return (values + torch.tensor([4.0, 0.0, 0.0])) / 2


def test_a_step_is_known_one_step_later():
    sync = StepSync()
    sync.stop_requested = True
    sync.exchange(0, torch.tensor(2.0), two_devices)
    assert sync.last is None
    assert sync.peek() == SyncedStep(0, 3.0, stop=True)
    sync.stop_requested, sync.save_requested = False, True
    sync.exchange(1, torch.tensor(1.0), two_devices)
    assert sync.last == SyncedStep(0, 3.0, stop=True)
    sync.flush()
    assert sync.last == SyncedStep(1, 2.5, save=True)
    assert sync.peek() is None


def test_what_is_pending_outlives_the_process_but_not_a_wish():
    sync, resumed = StepSync(), StepSync()
    resumed.load_state_dict(sync.state_dict())
    assert resumed.peek() is None
    sync.stop_requested = sync.save_requested = True
    sync.exchange(7, torch.tensor(2.0), lambda values: values)
    resumed.load_state_dict(sync.state_dict())
    resumed.exchange(8, torch.tensor(1.0), lambda values: values)
    assert resumed.last == SyncedStep(7, 2.0)
