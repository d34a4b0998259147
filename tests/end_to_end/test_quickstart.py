"""The embedded default, through the real command line: shorter than a user's, to save time."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, printed_command, run_eva, run_g2l

SHORT = {"MAX_STEPS": 80, "MAX_TILES": 300}
CONFIG = ROOT / "configs" / "benchmarks" / "demo.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def run(folder):
    result = run_eva("fit", ROOT / "configs" / "quickstart.yaml", folder, **SHORT)
    assert result.returncode == 0, result.stderr
    return result


def test_the_student_learns_and_a_table_says_so(run):
    student = Path(re.search(r"^Student: +(.+)$", run.stdout, re.MULTILINE)[1])
    report = json.loads((student.parent / "evaluation.json").read_text())
    teacher, before, after = (
        report["encoders"][name]["values"]
        for name in ("teacher", "student before", "student after")
    )
    assert teacher["KNNAccuracy"] > 0.95
    assert after["KNNAccuracy"] > before["KNNAccuracy"] + 0.1
    assert after["LinearCKAUnbiased"] > before["LinearCKAUnbiased"] + 0.3
    assert after["PathoROBIndex/k=20"] > before["PathoROBIndex/k=20"]
    for values in (teacher, before, after):
        for name in report["columns"]:
            assert f"{values[name]:.4f}" in run.stdout
            assert f"{values[name]:.4f}" in (student / "README.md").read_text()


# No workers: eva has those of embeddings spawned, and each imports all of eva.
FEW = {"MAX_TILES": 200, "MAX_STEPS": 60, "N_RUNS": 1, "N_DATA_WORKERS": 0, "ACCELERATOR": "cpu"}


def values_of(logs, label):
    """What eva found on the test split."""
    (results,) = (logs / label).rglob("results.json")
    (metrics,) = json.loads(results.read_text())["metrics"]["test"]
    return {name.removeprefix("test/"): metric["mean"] for name, metric in metrics.items()}


def test_the_whole_loop_by_one_command_a_model_and_by_hand(run, folder):
    student, config = printed_command(run.stdout)
    assert Path(config).is_absolute() and Path(config).read_text() == CONFIG.read_text()
    run_folder = Path(student["G2L_STUDENT"].removeprefix("local-dir:")).parent
    output = folder / "benchmark"
    words = ["benchmark", f"start={run_folder / 'start'}", "--tasks", "demo"]
    words += ["--reference", "demo:teacher", "--data", folder / "data", "--output", output]
    result = run_g2l(*words, **{name: str(value) for name, value in FEW.items()})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"Look at: {output / 'report' / 'report.html'}"
    again = run_g2l(*words, "--dry-run")
    assert again.returncode == 0 and again.stdout == ""
    assert again.stderr.count("done: demo (") == 2

    # The command that the run has printed.
    teacher = output / "embeddings" / "teacher" / "g2l_demo"
    variables = {"MODEL_LABEL": "student", "TEACHER_EMBEDDINGS_ROOT": teacher}
    result = run_eva("predict_fit", CONFIG, folder, **FEW, **student | variables)
    assert result.returncode == 0, result.stderr
    found = {label: values_of(output / "logs", label) for label in ("teacher", "start")}
    found["student"] = values_of(folder / "logs", "student")
    assert found["student"]["MulticlassAccuracy"] > 0.5
    assert found["teacher"]["KNNAccuracy"] > found["start"]["KNNAccuracy"]
    assert found["student"]["LinearCKAUnbiased"] > found["start"]["LinearCKAUnbiased"]
    assert "LinearCKAUnbiased" not in found["teacher"]

    logs = [folder / "logs" / "student", output / "logs"]
    report = run_g2l("report", *logs, "--output", folder / "report", "--reference", "teacher")
    assert report.returncode == 0, report.stderr
    table = pd.read_csv(folder / "report" / "report.csv")
    test = table[(table.task == "demo cohort") & (table.split == "test")]
    for label, metrics in found.items():
        rows = test[test.model == label].set_index("metric")
        for name in ("MulticlassAccuracy", "KNNAccuracy", "PathoROBIndex/k=20"):
            assert rows.loc[name, "mean"] == pytest.approx(metrics[name]), (label, name)
    page = (folder / "report" / "report.html").read_text()
    assert all(label in page for label in found)
