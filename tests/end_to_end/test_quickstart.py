"""The embedded default, through the real command line: shorter than a user's, to save time."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, printed_command, run_eva, run_g2l

CONFIG = ROOT / "configs" / "benchmarks" / "demo.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def run(folder):
    result = run_eva("fit", ROOT / "configs" / "quickstart.yaml", folder, MAX_STEPS=120)
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


def benchmark(folder, label, **variables):
    """Runs the demo's benchmark on one model, and returns what eva found on the test split."""
    result = run_eva(
        "predict_fit",
        CONFIG,
        folder,
        MODEL_LABEL=label,
        MAX_TILES=200,
        MAX_STEPS=60,
        **variables,
    )
    assert result.returncode == 0, result.stderr
    (results,) = folder.glob(f"logs/{label}/offline/g2l_demo/*/results.json")
    (metrics,) = json.loads(results.read_text())["metrics"]["test"]
    return {name.removeprefix("test/"): metric["mean"] for name, metric in metrics.items()}


def test_the_whole_loop_teacher_start_student_and_a_rival(run, folder):
    student, config = printed_command(run.stdout)
    assert Path(config).is_absolute() and Path(config).read_text() == CONFIG.read_text()
    run_folder = Path(student["G2L_STUDENT"].removeprefix("local-dir:")).parent
    teacher = {"TEACHER_EMBEDDINGS_ROOT": "data/embeddings/teacher/g2l_demo"}
    found = {
        "teacher": benchmark(
            folder,
            "teacher",
            **student | {"G2L_STUDENT": "demo:teacher", "IN_FEATURES": 192},
        ),
        "start": benchmark(
            folder, "start", **student | teacher | {"G2L_STUDENT": f"local-dir:{run_folder}/start"}
        ),
        "student": benchmark(folder, "student", **student | teacher),
        "rival": benchmark(
            folder,
            "rival",
            MODEL_NAME="universal/vit_tiny_patch16_224_random",
            IN_FEATURES=192,
            RESIZE_DIM=64,
        ),
    }
    assert found["student"]["MulticlassAccuracy"] > 0.5
    assert found["teacher"]["KNNAccuracy"] > found["start"]["KNNAccuracy"]
    assert found["student"]["LinearCKAUnbiased"] > found["start"]["LinearCKAUnbiased"]
    assert "LinearCKAUnbiased" not in found["rival"]

    report = run_g2l("report", folder / "logs", "--output", folder / "report")
    assert report.returncode == 0, report.stderr
    table = pd.read_csv(folder / "report" / "report.csv")
    test = table[(table.task == "demo cohort") & (table.split == "test")]
    for label, metrics in found.items():
        rows = test[test.model == label].set_index("metric")
        for name in ("MulticlassAccuracy", "KNNAccuracy", "PathoROBIndex/k=20"):
            assert rows.loc[name, "mean"] == pytest.approx(metrics[name]), (label, name)
    page = (folder / "report" / "report.html").read_text()
    assert all(label in page for label in found)
