import re
from pathlib import Path

import pytest
from helpers import WIDER, run_script, save_tiny_model

SCRIPT = Path(__file__).with_name("interrupted_runs.py")


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_points_ends_bit_for_bit_as_one_that_was_not(
    tmp_path, write_slide, seed
):
    save_tiny_model(tmp_path / "teacher", **WIDER)
    for number in range(2):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 480 + 32 * number)
    run = run_script(SCRIPT, tmp_path, seed)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert run.stdout.endswith("at last: exit status 0\n")
    kills = re.findall(r"from step (\d+): (SIG\w+), exit status (-?\d+)", run.stdout)
    assert {(name, status) for _, name, status in kills} <= {
        ("SIGKILL", "-9"),
        ("SIGTERM", "143"),
        ("SIGINT", "130"),
    }
    assert any(int(step) > 0 for step, _, _ in kills)
    (whole,) = (tmp_path / "whole").glob("*/run_0/student/model.safetensors")
    (killed,) = (tmp_path / "killed").glob("*/run_0/student/model.safetensors")
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.rglob("*.part"))
