"""From a folder of slides with faults to a trained student, by the commands that a user types."""

import csv
import re
import shutil

import pytest
from helpers import ROOT, damage, run_eva, run_g2l, save_tiny_model

from g2l_plugin.demo.generate import make_cohort

GRID = ["--width", "64", "--height", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def slides(folder):
    """Generated slides, of which one does not open, and two have the same content."""
    make_cohort(folder / "cohort", n_slides=4, size=1024)
    slides = folder / "cohort" / "slides"
    shutil.copy(slides / "east-001.tiff", slides / "copy of east-001.tiff")
    (slides / "cut é.svs").write_bytes((slides / "west-003.tiff").read_bytes()[:1000])
    return slides


@pytest.fixture(scope="module")
def index(folder, slides):
    result = run_g2l("index", slides, folder / "index", "--max-lost", "0.2", *GRID)
    assert result.returncode == 0, result.stderr
    assert re.search(r"has the same content as copy of east-001\.tiff", result.stdout)
    assert re.search(r"cannot be opened: .*cut é\.svs", result.stdout)
    return folder / "index"


@pytest.fixture(scope="module")
def run(folder, slides, index):
    teacher = save_tiny_model(folder / "teacher", embed_dim=48, depth=2)

    def run(output, interrupt=None, **environment):
        return run_eva(
            "fit",
            ROOT / "configs" / "g2l_breast.yaml",
            folder,
            interrupt,
            TEACHER=f"local-dir:{teacher}",
            STUDENT="timm:vit_tiny_patch16_224",
            STUDENT_PRETRAINED="false",
            STUDENT_KWARGS="{img_size: 32, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
            VIEW_SIZE=32,
            TILE_SIZE=64,
            INDEX_ROOT=index,
            OUTPUT_ROOT=folder / output,
            BATCH_SIZE=16,
            VAL_CHECK_INTERVAL=32,
            N_DATA_WORKERS=2,
            PRECISION="32-true",
            **{"MAX_STEPS": 32, "MAX_LOST": 0.2, "SLIDES_ROOT": slides} | environment,
        )

    return run


def test_a_run_on_packed_tiles_needs_no_slides(folder, slides, index, run):
    result = run_g2l("pack", index, folder / "packed", "--max-lost", "0.2")
    assert result.returncode == 0, result.stderr
    result = run("packed_logs", PACKED_ROOT=folder / "packed", SLIDES_ROOT=folder / "none")
    assert result.returncode == 0, result.stderr
    assert re.search(r"train: [\d,]+ tiles of 1 shards", result.stderr)
    assert len(list((folder / "packed_logs").rglob("student/model.safetensors"))) == 1


def test_the_options_for_scale_are_taken_from_the_environment(folder, run):
    options = {
        "MICRO_BATCH_SIZE": 8,
        "WIDTHS": "[16]",
        "ACCUMULATE_GRAD_BATCHES": 2,
        "N_VIEWS": 1,
        "TEACHER_CACHE": folder / "cache",
        "MAX_STEPS": 16,
        "RESUME": "null",
    }
    result = run("scale_logs", **options)
    assert result.returncode == 0, result.stderr
    assert list((folder / "cache").rglob("view-0000/part-*.safetensors"))
    (card,) = (folder / "scale_logs").rglob("student/README.md")
    text = " ".join(card.read_text().split())
    assert "512 augmented tiles in 16 steps" in text
    assert "The first 16 features were also distilled separately" in text
    for setting in ("model.micro_batch_size | 8", "accumulate_grad_batches | 2", "n_views | 1"):
        assert setting in text
    assert "teacher_cache" not in text  # a place of this machine


@pytest.mark.slow
def test_two_devices_share_the_tiles_and_publish_one_student(folder, index, run):
    damage(folder / "cohort" / "slides" / "north-000.tiff", 0, [9])  # perhaps seen by one of them
    result = run("two_logs", NUM_DEVICES=2, SHARD_TEACHERS="true")  # into a second epoch
    assert result.returncode == 0, result.stderr
    assert "Starting with 2 processes" in result.stderr
    assert result.stdout.count("Student:") == 1
    assert len(list((folder / "two_logs").rglob("student/model.safetensors"))) == 1
    assert list((folder / "two_logs").rglob("lost_tiles_rank*.csv"))
    (session,) = (folder / "two_logs").iterdir()
    assert (session / "results.json").is_file()


@pytest.mark.slow
def test_two_devices_that_are_asked_to_end_go_on_by_the_same_command(folder, run):
    logs = folder / "ended_logs"
    options = {"NUM_DEVICES": 2, "MAX_STEPS": 120, "CHECKPOINT_INTERVAL": 5}
    options |= {"EARLY_STOP_EXCEEDANCES": 200}
    result = run("ended_logs", lambda: list(logs.rglob("step=*.ckpt")), **options)
    assert result.returncode == 143, result.stderr
    assert "SIGTERM: the run ends after a checkpoint of this step" in result.stderr
    step = int(re.search(r"Stopped at step (\d+) as requested", result.stderr)[1])
    assert 0 < step < 120
    newest = max(logs.rglob("step=*.ckpt"))
    assert newest.name == f"step={step:08d}.ckpt"
    result = run("ended_logs", **options)
    assert result.returncode == 0, result.stderr
    assert f"Resuming from {newest}" in result.stderr
    (session,) = logs.iterdir()
    assert (session / "results.json").is_file()
    assert (session / "run_0" / "config.yaml").is_file()
    assert (session / "run_0" / "student" / "config.yaml").is_file()
    card = (session / "run_0" / "student" / "README.md").read_text()
    assert "in 120 steps" in card


def test_damage_after_indexing_is_reported_and_too_much_of_it_ends_the_run(folder, index, run):
    slide = folder / "cohort" / "slides" / "north-000.tiff"
    damage(slide, 0, [5, 6])
    result = run("logs")
    assert result.returncode == 0, result.stderr
    # What `g2l index` made is used; only the slide that cannot be opened is tried again.
    assert "Indexing slides:   0%" not in result.stderr
    assert re.search(r"train: [\d,]+ tiles of 3 slides", result.stderr)  # one is held out
    assert "Substitute tiles are read in place" in result.stderr
    (report,) = (folder / "logs").rglob("lost_tiles.csv")
    assert {row["slide"] for row in csv.DictReader(report.open())} == {str(slide)}

    damage(slide, 0, range(16))  # a third of the training tiles
    result = run("stopped", MAX_LOST=0.17)  # enough for the slide that does not open
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert re.search(r"[\d,]+ of [\d,]+ tiles cannot be read, more than the 17\.0%", message)
    assert not list((folder / "stopped").rglob("student"))
