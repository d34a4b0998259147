import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers import WIDER, save_tiny_model
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_devices.py")


def test_two_devices_train_as_one_with_twice_the_tiles_and_stop_together(tmp_path):
    teacher = save_tiny_model(tmp_path / "teacher", **WIDER)
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, SCRIPT, str(devices), teacher, tmp_path / "out"],
            check=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        )
    one = load_file(tmp_path / "out_1_0.safetensors")
    first, second = (load_file(tmp_path / f"out_2_{rank}.safetensors") for rank in (0, 1))
    assert 5 < len(one["losses"]) < 24  # the early stop ended it
    assert one["tiles_seen"] == first["tiles_seen"] == 12 * len(one["losses"])
    for other in (first, second):
        assert other.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=2e-4, msg=name)
    for name, value in first.items():
        assert torch.equal(second[name], value), name
