import json
import re

import pytest
import timm

from g2l_plugin import cli
from g2l_plugin.planning.plan import plan_run


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Small networks, and no other variable of the user."""
    for name in (
        "MICRO_BATCH_SIZE",
        "NUM_DEVICES",
        "MAX_STEPS",
        "N_SLIDES",
        "COMPILE",
        "SHARD_TEACHERS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEACHER", "timm:test_vit2")
    monkeypatch.setenv("TEACHER_KWARGS", "{img_size: 224}")
    monkeypatch.setenv("STUDENT", "timm:test_vit")
    monkeypatch.setenv("STUDENT_KWARGS", "{img_size: 224}")


def test_the_plan_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BATCH_SIZE", "64")
    monkeypatch.setenv("NUM_DEVICES", "2")
    monkeypatch.setenv("MAX_STEPS", "1000")
    file = tmp_path / "plan.json"
    words = ["--gpu", "l4-24", "--slides", "10", "--price", "l4-24=2", "--json", str(file)]
    assert cli.main(["plan", *words]) == 0
    out = capsys.readouterr().out
    assert "teacher timm:test_vit2" in out and "BATCH_SIZE=64" in out and str(file) in out
    assert "…" not in out and "2 GPUs, 10 slides" in out
    plan = json.loads(file.read_text())
    (l4,) = plan["gpus"]
    # Written out: operations of a tile, speed of two GPUs, 10 slides of 7,500 tiles.
    flops = plan["teachers"][0]["flops"] + 3 * plan["student"]["flops"]
    rate = 2 * 121e12 * (658 / 989) * 0.50 / flops
    assert l4["rate"] == pytest.approx(rate)
    assert l4["pass_hours"] == pytest.approx(75_000 / rate / 3600)
    assert l4["run_hours"] == pytest.approx(1000 * 64 * 2 / rate / 3600)
    assert l4["pass_dollars"] == pytest.approx(l4["pass_hours"] * 2 * 2)
    assert l4["fits"] and l4["micro_batch"] is None and l4["largest_batch"] >= 64
    step = plan["step_bytes"]
    assert sum(size for name, size in step.items() if name != "peak") == step["peak"]
    assert plan["disk_bytes"]["published student"] == 4 * plan["student"]["parameters"]


def test_where_the_batch_does_not_fit_the_micro_batch_that_does_is_named(monkeypatch, capsys):
    monkeypatch.setenv("BATCH_SIZE", "16384")  # their views alone take 13 GB
    assert cli.main(["plan", "--gpu", "l4-24", "--slides", "1"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "l4-24" in line)
    assert re.search(r"MICRO_BATCH_SIZE=\d+ ", row)


def test_a_precision_without_a_measured_speed_has_no_hours(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PRECISION", "32-true")
    file = tmp_path / "plan.json"
    assert cli.main(["plan", "--gpu", "h100-80", "--json", str(file)]) == 0
    (h100,) = json.loads(file.read_text())["gpus"]
    assert h100["fits"] and h100["rate"] is h100["pass_hours"] is h100["pass_dollars"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpu", "h900"], "Unknown GPU 'h900'. Expected one of h200-141"),
        (["--price", "h900=1"], "Unknown GPU 'h900'"),
        (["--config", "g2l_lnug"], "There is no config 'g2l_lnug'"),
        (["--config", "benchmarks/bach"], "benchmarks/bach is not a config of the recipe"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(words, expected, capsys):
    assert cli.main(["plan", *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {expected}") and captured.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--slides", "0"], ["--price", "h100-80"], ["--price", "x=-1"]])
def test_numbers_that_are_none_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", *words])
    assert "expected" in capsys.readouterr().err


def test_teachers_that_are_divided_leave_their_memory_but_two_blocks(monkeypatch):
    monkeypatch.setenv("NUM_DEVICES", "4")
    whole = plan_run("g2l_breast", []).step
    monkeypatch.setenv("SHARD_TEACHERS", "true")
    divided = plan_run("g2l_breast", []).step
    teacher = timm.create_model("test_vit2", num_classes=0, img_size=224).bfloat16()
    block = max(sum(p.nbytes for p in block.parameters()) for block in teacher.blocks)
    assert divided.teachers == -(-whole.teachers // 4)
    saved = whole.teachers - divided.teachers - 2 * block
    assert saved > 0
    for batch in (1, 32, 256):
        assert whole.peak(batch) - divided.peak(batch) == saved
    assert divided.gradients == whole.gradients and divided.optimizer == whole.optimizer
    monkeypatch.setenv("NUM_DEVICES", "1")
    assert plan_run("g2l_breast", []).step == whole
