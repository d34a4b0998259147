"""Segmentation tasks: `g2l benchmark` of students of timm, through the real eva, to the report."""

import json

import pandas as pd
import pytest
import timm
from helpers import run_g2l, save_tiny_model
from segmentation_downloads import bcss_names, write_bcss, write_consep, write_monusac
from timm.models import save_for_hf

from g2l_plugin.slides.patients import hash_patient

FEW = {"MAX_STEPS": "30", "N_RUNS": "1", "N_DATA_WORKERS": "0", "ACCELERATOR": "cpu"}


def benchmark(tmp_path, student, *tasks, **environment):
    words = ["benchmark", student, "--data", tmp_path / "data", "--output", tmp_path / "out"]
    few = FEW | {"EVA_HOME": str(tmp_path), **environment}
    return run_g2l(*words, "--tasks", *tasks, **few)


def dice_of(tmp_path):
    """The values of eva's leaderboard metric, and those of the model evaluated here."""
    table = pd.read_csv(tmp_path / "out" / "report" / "report.csv")
    table = table[table["metric"] == "MonaiDiceScore"]
    return table, table[~table["published"]].set_index(["task", "split"])


@pytest.mark.slow
def test_a_transformer_segments_and_its_patients_are_counted(tmp_path):
    write_consep(tmp_path / "data" / "consep")
    write_bcss(tmp_path / "data" / "bcss")
    student = save_tiny_model(tmp_path / "tiny", depth=3)
    test_patients = bcss_names()[-45:]
    hashes = sorted(hash_patient(name) for name in [*test_patients[:7], "TCGA-ZZ-9999"])
    (student / "patients.txt").write_text("".join(f"{own}\n" for own in hashes))
    words = (student, "consep", "bcss")
    result = benchmark(tmp_path, *words, OUT_INDICES="[0, 2]")
    assert result.returncode == 0, result.stderr
    every, own = dice_of(tmp_path)
    assert set(own.index) == {("CoNSeP", "val"), ("BCSS", "val"), ("BCSS", "test")}
    assert own["mean"].between(0.3, 1).all(), own  # the classes have colours of their own
    assert own.loc[("BCSS", "test"), "n_trained_on"] == 7
    assert pd.isna(own.loc[("CoNSeP", "val"), "n_trained_on"])  # its images name no patient
    published = every[every["published"]]
    assert set(published["task"]) == {"CoNSeP"} and published["mean"].max() == 0.646
    (facts,) = tmp_path.glob("out/logs/tiny/bcss/*/run_0/metrics/facts.json")
    assert json.loads(facts.read_text())["classes"][:2] == ["outside_roi", "tumor"]

    again = benchmark(tmp_path, *words, OUT_INDICES="[0, 2]")
    assert again.returncode == 0 and again.stderr.count("done: ") == 2, again.stderr
    other = benchmark(tmp_path, *words, OUT_INDICES="1")
    assert other.returncode != 0 and "another model or OUT_INDICES called tiny" in other.stderr


@pytest.mark.slow
def test_a_convolutional_network_segments(tmp_path):
    write_monusac(tmp_path / "data" / "monusac")
    network = timm.create_model("resnet10t", num_classes=0)
    student, size = tmp_path / "resnet", {"input_size": (3, 64, 64)}
    save_for_hf(network, str(student), safe_serialization=True, data_config=size)
    result = benchmark(tmp_path, student, "segmentation", OUT_INDICES="2", MAX_STEPS="4")
    assert result.returncode == 0, result.stderr
    assert "not there: consep: " in result.stderr and "not there: bcss: " in result.stderr
    every, own = dice_of(tmp_path)
    assert list(own.index) == [("MoNuSAC", "val")] and 0 <= own["mean"].item() <= 1
    assert set(every["task"]) == {"MoNuSAC"} and every["published"].sum() == 15
    # Three quarters of an image are background: alone, it has a Dice of 2 * 0.75 / 1.75.
    table = pd.read_csv(tmp_path / "out" / "report" / "report.csv").set_index("metric")
    assert table.loc["monaidicescore_background", "mean"] > 0.8
