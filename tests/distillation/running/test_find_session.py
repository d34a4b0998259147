import subprocess
import sys

import pytest
import torch

from g2l_plugin.distillation.running.resume import (
    compare_configs,
    find_session,
    keep_config,
    sole_process,
)
from g2l_plugin.errors import UserError

CONFIG = {
    "trainer": {"max_steps": 100},
    "model": {"optimizer": {"lr": 0.1}, "micro_batch_size": None},
    "data": {"train": {"root": "/slides", "index_dir": "/index", "num_workers": 8}},
}


@pytest.fixture
def write_session(tmp_path):
    def write(name, config=CONFIG, finished=False, checkpoint="step=00000003.ckpt"):
        run = tmp_path / name / "run_0"
        (run / "checkpoints").mkdir(parents=True)
        if checkpoint:
            (run / "checkpoints" / checkpoint).touch()
        if config:
            keep_config(run, config)
        if finished:
            (tmp_path / name / "results.json").touch()

    return write


def test_the_newest_of_the_same_model_and_data_is_resumed(write_session, tmp_path):
    assert find_session(tmp_path / "none", CONFIG) is None
    write_session("1")
    write_session("2")
    write_session("3", CONFIG | {"model": {"optimizer": {"lr": 0.2}}})
    write_session("4", checkpoint=None)
    assert find_session(tmp_path, CONFIG) == "2"
    elsewhere = {"train": {"root": "/slides", "index_dir": "/scratch", "num_workers": 2}}
    smaller = CONFIG["model"] | {"micro_batch_size": 8, "compile": True}
    again = {"trainer": {"max_steps": 200}, "model": smaller, "data": elsewhere}
    assert find_session(tmp_path, again) == "2"
    assert find_session(tmp_path, again | {"data": {"train": {"root": "/others"}}}) is None


def test_a_start_that_was_killed_while_it_wrote_its_configuration_is_found(write_session, tmp_path):
    write_session("1")
    (tmp_path / "1" / "run_0" / "config.yaml").write_text("")  # as eva writes it, not yet flushed
    assert find_session(tmp_path, CONFIG) == "1"


def test_after_one_that_has_ended_a_new_one_starts(write_session, tmp_path):
    write_session("1")
    write_session("2", finished=True)
    assert find_session(tmp_path, CONFIG) is None


@pytest.mark.parametrize(
    ("limit", "ending", "goes_on"), [(40, "", True), (20, "", False), (-1, "", False), (40, "x", 0)]
)
def test_one_that_has_ended_goes_on_if_its_limit_was_raised(
    write_session, tmp_path, limit, ending, goes_on
):
    write_session("1", finished=True)
    checkpoint = {"g2l": {"finished": True, "ending": ending, "step": 20}}
    torch.save(checkpoint, tmp_path / "1" / "run_0" / "checkpoints" / "last.ckpt")
    assert (find_session(tmp_path, CONFIG, limit) == "1") == goes_on


def schedule(steps, warmup=0.0, kind="g2l_plugin.CosineSchedule"):
    settings = {"T_max": steps, "warmup": warmup}
    model = {"lr_scheduler": {"class_path": kind, "init_args": settings}, "compile": steps > 20}
    trainer = {"max_steps": steps, "resume": str(steps), "callbacks": [{"class_path": "a.Bar"}]}
    return {"trainer": {"init_args": trainer}, "model": {"init_args": model}, "data": {}}


def test_what_may_change_on_resuming_is_told_and_the_rest_refused_by_name():
    assert compare_configs(schedule(20), schedule(40)) == ["trainer.max_steps 20 → 40"]
    assert compare_configs(None, schedule(40)) == compare_configs(schedule(40), None) == []
    with pytest.raises(UserError, match=r"model\.lr_scheduler\.warmup 0\.0 → 0\.1\. .*RESUME=null"):
        compare_configs(schedule(20), schedule(20, warmup=0.1))
    torchs = "torch.optim.lr_scheduler.CosineAnnealingLR"  # it would keep its 20 steps
    with pytest.raises(UserError, match=r"T_max 20 → 40"):
        compare_configs(schedule(20, kind=torchs), schedule(40, kind=torchs))


def test_without_a_configuration_only_a_session_without_one_goes_on(write_session, tmp_path):
    write_session("1", config=None)
    write_session("2")
    assert find_session(tmp_path, None) == "1"
    assert find_session(tmp_path, CONFIG) == "2"


def test_a_session_is_of_one_process(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from g2l_plugin.distillation.running.resume import sole_process\n"
        "with sole_process(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        expected = pytest.raises(UserError, match="Another process trains .*RESUME=null")
        with expected, sole_process(tmp_path):
            pass
        other.kill()
    with sole_process(tmp_path):
        pass
