"""The rows of the study are configs that `eva fit` takes, and its table says what was found."""

import argparse
import importlib.util
import json

import pytest
import yaml
from helpers import ROOT

FOLDER = ROOT / "benchmarks" / "study"
SPEC = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)
ROWS = yaml.safe_load((FOLDER / "rows.yaml").read_text())


RUNS = [
    (name, pair)
    for name, row in ROWS["rows"].items()
    for pair in row.get("pairs", ("random", "pretrained"))
]


@pytest.mark.parametrize(("name", "pair"), RUNS)
def test_a_row_is_a_config_of_its_pair(name, pair, tmp_path):
    options = argparse.Namespace(
        work=tmp_path, tiles=tmp_path / "lung", view=112, accelerator="cpu"
    )
    row, variables = ROWS["rows"][name], ROWS["pairs"][pair]["variables"]
    config = study.compose(options, pair, name, 7, tmp_path / "run")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if "lr" in row:
        assert float(model["optimizer"]["init_args"]["lr"]) == row["lr"][pair]
    expected = "rotation" if row.get("robust") else "linear"
    expected = row.get("settings", {}).get("model.init_args.projector", expected)
    assert model.get("projector", "linear") == expected
    if pair != "demo" and (
        model["patch_weight"] not in ("0.0", 0.0) or model["view"]["init_args"]["n_views"] == "null"
    ):
        assert model["teacher_cache"] is None
    assert config["trainer"]["init_args"]["accelerator"] == "cpu"
    assert model["view"]["init_args"]["seed"] == 42 and int(data["seed"]) == 7
    assert int(config["trainer"]["init_args"]["max_steps"]) == variables["MAX_STEPS"]
    callbacks = {
        part["class_path"]: part.get("init_args", {})
        for part in config["trainer"]["init_args"]["callbacks"]
    }
    evaluation = callbacks["g2l_plugin.DistillationEvaluation"]
    if pair == "demo":
        assert evaluation["test"]["init_args"]["root"] == str(tmp_path / "demo")
        return
    teacher = variables["TEACHER"].format(teachers=tmp_path / "teachers")
    assert model["teacher"]["source"] == teacher
    assert int(data["datasets"]["train"]["init_args"]["width"]) == 128
    assert evaluation["test"]["init_args"]["split"] == "val"


def test_the_table_has_means_over_seeds_with_intervals(tmp_path, capsys):
    for seed, value in enumerate((0.8, 0.9)):
        run = tmp_path / "runs" / "random" / "paper" / str(seed)
        (run / "session" / "run_0" / "student").mkdir(parents=True)
        (run / "minutes").write_text("3.0\n")
        values = {
            "KNNBalancedAccuracy": value,
            "LogisticBalancedAccuracy": 0.5,
            "LinearCKAUnbiased": 0.25,
        }
        rows = {name: {"values": values} for name in ("teacher", "student before", "student after")}
        evaluation = {"step": 1200, "encoders": rows}
        (run / "session" / "run_0" / "evaluation.json").write_text(json.dumps(evaluation))
        (run / "session" / "run_0" / "student" / "results.json").write_text('{"alignment": {}}')
    study.table(argparse.Namespace(work=tmp_path, split="val"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "| paper | 2 | 0.850 ± 0.635 | 0.500 | 0.250 | 3 |"
