"""The embedded default, through the real command line: shorter than a user's, to save time."""

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT, printed_command, run_eva


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
        report["encoders"][name] for name in ("teacher", "student before", "student after")
    )
    assert teacher["knn_accuracy"] > 0.95
    assert after["knn_accuracy"] > before["knn_accuracy"] + 0.1
    assert after["cka"] > before["cka"] + 0.3
    for row in (teacher, before, after):
        assert f"{row['knn_accuracy']:.4f}" in run.stdout
        assert f"{row['knn_accuracy']:.4f}" in (student / "README.md").read_text()


def test_the_command_printed_last_benchmarks_the_student(run, folder):
    variables, config = printed_command(run.stdout)
    assert config == "configs/benchmarks/demo.yaml"
    result = run_eva("predict_fit", ROOT / config, folder, **variables, MAX_TILES=150, MAX_STEPS=60)
    assert result.returncode == 0, result.stderr
    (results,) = folder.glob("logs/g2l/student/offline/demo/*/results.json")
    metrics = json.loads(results.read_text())["metrics"]["test"][0]
    assert metrics["test/MulticlassAccuracy"]["mean"] > 0.5
