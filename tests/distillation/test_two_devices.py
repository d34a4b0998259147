from pathlib import Path

import pytest
import torch
from helpers import WIDER, run_script, save_tiny_model
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_devices.py")


def run_on_one_and_two(tmp_path, *options):
    """What one device, and each of two, has after training on the same tiles."""
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    for devices in (1, 2):
        result = run_script(SCRIPT, devices, teacher, tmp_path / "out", *options)
        assert result.returncode == 0, result.stderr
    return [load_file(tmp_path / f"out_{name}.safetensors") for name in ("1_0", "2_0", "2_1")]


def test_two_devices_train_as_one_with_twice_the_tiles_and_stop_together(tmp_path):
    one, first, second = run_on_one_and_two(tmp_path)
    assert 5 < len(one["losses"]) < 24  # the early stop ended it
    assert one["tiles_seen"] == first["tiles_seen"] == 12 * len(one["losses"])
    for other in (first, second):
        assert other.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=2e-4, msg=name)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.slow
def test_two_devices_that_each_hold_half_a_teacher_train_as_one_that_holds_it_whole(tmp_path):
    one, first, second = run_on_one_and_two(tmp_path, "sharded")
    whole = one.pop("teacher")
    halves = [other.pop("teacher") for other in (first, second)]
    assert sum(halves) == whole and max(halves) < 0.6 * whole
    for other in (first, second):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=2e-4, msg=name)


@pytest.mark.slow
def test_two_devices_keep_the_queue_of_one_with_the_tiles_of_both(tmp_path):
    one, *others = run_on_one_and_two(tmp_path, "30")
    queues = [name for name in one if name.endswith("loss._extra_state") and one[name].numel()]
    assert len(queues) == 2  # of each width
    for name in queues:
        assert one[name].shape == (30, 48)  # the last two batches, and a half of that before
        for other in others:  # DDP copies the first device's buffers to the second: the same
            torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=2e-4)
