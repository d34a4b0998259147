import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from g2l_plugin.benchmark.jobs import find_session, plan_jobs
from g2l_plugin.benchmark.models import Maps, Model
from g2l_plugin.benchmark.run import run_eva, run_jobs
from g2l_plugin.benchmark.tasks import Task
from g2l_plugin.errors import UserError

STUDENT = Model("student", "aa", {"MODEL_NAME": "g2l/student", "NORMALIZE_MEAN": "[0.5, 0.5, 0.5]"})
TEACHER = Model("teacher", "bb", {"MODEL_NAME": "g2l/student"})
TASKS = [
    Task(name, name, Path("config of") / f"{name}.yaml", {"DATA_ROOT": f"/data/{name}"})
    for name in ("bach", "crc")
]


def plan(tmp_path, reference=TEACHER):
    models = [STUDENT, *([reference] if reference else [])]
    return plan_jobs(TASKS, models, tmp_path, reference)


def save_session(job, number=0, sha256=None, teacher=None, weights=None):
    folder = Path(job.variables["OUTPUT_ROOT"]) / f"session {number}"
    metrics = folder / "run_0" / "metrics"
    metrics.mkdir(parents=True)
    results = {"metrics": {"val": [], "test": [{"test/KNNAccuracy": {"values": [1]}}]}}
    (folder / "results.json").write_text(json.dumps(results))
    model = {"name": job.model.label} | (weights or {"sha256": sha256 or job.model.sha256})
    (metrics / "facts.json").write_text(json.dumps({"task": job.task.folder, "model": model}))
    found = {"values": {"KNNAccuracy": 1}, "undefined": {}, "details": {"teacher_root": teacher}}
    (metrics / "test.json").write_text(json.dumps(found))
    return folder


def test_the_reference_comes_first_and_students_compare_with_it(tmp_path):
    jobs = plan(tmp_path)
    names = ["bach (teacher)", "bach (student)", "crc (teacher)", "crc (student)"]
    assert [job.name for job in jobs] == names
    assert "TEACHER_EMBEDDINGS_ROOT" not in jobs[0].variables
    assert jobs[1].variables["TEACHER_EMBEDDINGS_ROOT"] == str(jobs[0].embeddings)
    assert all("TEACHER_EMBEDDINGS_ROOT" not in j.variables for j in plan(tmp_path, None))


def test_the_printed_command_sees_what_the_job_sets_and_nothing_else_of_its_own(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TEACHER_EMBEDDINGS_ROOT", "of another run")
    monkeypatch.setenv("MODEL_EXTRA_KWARGS", "{a: b}")
    monkeypatch.setenv("N_RUNS", "3")
    job = plan(tmp_path, None)[0]
    eva = tmp_path / "a stand-in"
    eva.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    eva.chmod(0o755)
    command = job.command(str(eva))
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    arguments, seen = json.loads(said)
    assert arguments == ["predict_fit", "--config", "config of/bach.yaml"]
    assert "TEACHER_EMBEDDINGS_ROOT" not in seen and "MODEL_EXTRA_KWARGS" not in seen
    assert seen["N_RUNS"] == "3" and seen["NORMALIZE_MEAN"] == "[0.5, 0.5, 0.5]"
    expected = job.environment(os.environ)
    shells = {"_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES"}
    assert {n: seen.get(n) for n in expected.keys() - shells} == {
        n: expected[n] for n in expected.keys() - shells
    }


def test_only_the_same_weights_task_and_teacher_are_done(tmp_path):
    teacher, student, *others = plan(tmp_path)
    assert find_session(student) is None
    save_session(student, 0)
    assert find_session(student) is None  # not yet compared with the teacher
    newest = save_session(student, 1, teacher=str(teacher.embeddings))
    assert find_session(student).folder == newest
    assert [find_session(job) for job in (teacher, *others)] == [None] * 3
    save_session(others[1], 2, sha256="cc")
    with pytest.raises(UserError, match="results of another model called student"):
        find_session(others[1])


def test_segmentation_takes_the_models_maps_and_knows_its_results_by_them(tmp_path):
    maps = Maps("ee", {"IN_FEATURES": "64", "OUT_INDICES": "2"})
    student = dataclasses.replace(STUDENT, maps=maps)
    tasks = [dataclasses.replace(TASKS[0], segments=True), TASKS[1]]
    _, job, _, tiles = plan_jobs(tasks, [student, TEACHER], tmp_path, TEACHER)
    assert job.variables.items() >= maps.variables.items() and job.teacher is None
    assert "OUT_INDICES" not in tiles.variables and tiles.teacher is not None
    folder = save_session(job, weights={"maps_sha256": "ee"})
    assert find_session(job).folder == folder
    other = dataclasses.replace(student, maps=dataclasses.replace(maps, sha256="ff"))
    with pytest.raises(UserError, match="results of another model or OUT_INDICES"):
        find_session(dataclasses.replace(job, model=other))


def test_a_manifest_that_changed_is_run_again(tmp_path):
    manifest = tmp_path / "tiles.csv"
    manifest.touch()
    job = plan(tmp_path, None)[0]
    job = dataclasses.replace(job, task=dataclasses.replace(job.task, manifest=manifest))
    folder = save_session(job)
    os.utime(folder / "results.json", ns=(2 * 10**18, 2 * 10**18))
    assert find_session(job).folder == folder
    os.utime(manifest, ns=(3 * 10**18, 3 * 10**18))
    assert find_session(job) is None


def test_a_failed_run_stops_no_other_but_what_depends_on_it(tmp_path):
    ran = []

    def run(job):
        ran.append(job.name)
        return "out of disk" if job.name == "bach (teacher)" else None

    failures = run_jobs(plan(tmp_path), run)
    assert ran == ["bach (teacher)", "crc (teacher)", "crc (student)"]
    assert failures["bach (teacher)"] == "out of disk"
    assert "reference" in failures["bach (student)"] and len(failures) == 2


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('fine', file=sys.stderr)", None),
        ("sys.stderr.write('10%\\rerror: no disk\\n 20%\\r'); sys.exit(1)", "no disk"),
        ("sys.stderr.write('Traceback\\nValueError: x\\n'); sys.exit(3)", "ValueError: x"),
        ("sys.exit(4)", "exit status 4"),
    ],
)
def test_the_reason_of_a_failure_is_the_line_that_eva_ends_with(
    tmp_path, code, problem, capfdbinary
):
    eva = tmp_path / "eva"
    eva.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    eva.chmod(0o755)
    assert run_eva(plan(tmp_path)[0], str(eva)) == problem
