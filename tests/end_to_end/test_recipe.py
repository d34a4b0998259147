"""The real recipe, unchanged, on slides; its student in plain timm; eva's benchmark flow on it."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from helpers import ROOT, printed_command, run_eva, run_g2l, save_tiny_model
from hub_server import serve_hub

from g2l_plugin.demo.generate import CENTRES, make_cohort

SMALL = {"img_size": 224, "patch_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def cohort(folder):
    return make_cohort(folder / "cohort", n_slides=8, size=1024)


@pytest.fixture(scope="module")
def slides(folder):
    """The real slides where they are, else the generated ones."""
    real = Path(os.environ.get("G2L_SLIDES") or ROOT.parent / "shared" / "data" / "slides")
    if (real / "CMU-1-Small-Region.svs").is_file():
        return real
    make_cohort(folder / "in_place", n_slides=4, size=1024)
    return folder / "in_place" / "slides"


@pytest.fixture(scope="module")
def teacher(folder):
    return save_tiny_model(folder / "teacher", embed_dim=48, depth=2, **SMALL)


@pytest.fixture(scope="module")
def hub():
    with serve_hub({}) as hub:
        yield hub


def connection(hub, home):
    """Variables with which the Hub's client talks to a loopback Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": home,
        "HF_TOKEN": "hf_that_nobody_may_read",
    }


@pytest.fixture(scope="module")
def run(folder, slides, teacher, hub):
    """`eva fit --config configs/g2l_breast.yaml` with small models by variables alone."""
    return run_eva(
        "fit",
        ROOT / "configs" / "g2l_breast.yaml",
        folder,
        TEACHER=f"local-dir:{teacher}",
        STUDENT="timm:vit_tiny_patch16_224",
        STUDENT_PRETRAINED="false",
        STUDENT_KWARGS="{patch_size: 32, embed_dim: 32, depth: 1, num_heads: 2}",
        SLIDES_ROOT=slides,
        OVERWRITE_MPP=0.5,
        INDEX_ROOT=folder / "index",
        OUTPUT_ROOT=folder / "logs",
        MAX_STEPS=8,
        BATCH_SIZE=16,
        VAL_CHECK_INTERVAL=4,
        PRECISION="32-true",
        REPO_ID="org/breast_vitl14",
        **connection(hub, folder / "hf"),
        BENCHMARK_CONFIG=ROOT / "tests" / "end_to_end" / "eva_slides.yaml",
    )


@pytest.fixture(scope="module")
def student(run):
    assert run.returncode == 0, run.stderr
    return Path(re.search(r"^Student: +(.+)$", run.stdout, re.MULTILINE)[1])


def test_the_recipe_distils_on_slides_and_tells_what_to_do_next(run, student):
    assert student.is_dir() and student.parent.name == "run_0"
    *_, _student_line, load_line, benchmark_line = run.stdout.splitlines()
    assert "create_model" in load_line and benchmark_line.startswith("Benchmark: MODEL_NAME=")
    assert "tiles/s" in run.stderr and "loss=" in run.stderr
    assert (student.parent / "config.yaml").is_file()
    metrics = json.loads((student.parents[1] / "results.json").read_text())["metrics"]["val"][0]
    assert 0 < metrics["val/cka"]["mean"] <= 1


def test_plain_timm_loads_the_trained_student(student):
    model = timm.create_model(f"local-dir:{student}", pretrained=True)
    checkpoint = torch.load(student.parent / "checkpoints" / "last.ckpt", weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"student.model.{key}"], value)
    assert model.pretrained_cfg["mean"] != (0.0, 0.0, 0.0)


def test_the_card_says_what_the_student_has_seen(student):
    card = " ".join((student / "README.md").read_text().split())
    assert re.search(
        r"128 augmented tiles in 8 steps, drawn from \d+ tiles of \d whole slide", card
    )
    # With real slides at hand, one of them has a TCGA barcode.
    known = r" from 1 centre \(\w+: 1\)\. `patients.txt` lists 1 patient,"
    assert re.search(rf"whole slides?({known}|\. The patients are not known\.)", card)
    assert "| data.dataloaders.train.batch_size | 16 |" in card
    assert "for breast cancer" in card
    for name in ("results.json", "config.yaml"):
        assert (student / name).is_file()


def test_the_same_student_is_published_anew_from_the_run(student, tmp_path):
    command = ("publish", student.parent, "--output", tmp_path / "again", "--force")
    result = run_g2l(*command)
    assert result.returncode == 0, result.stderr
    for file in student.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_the_run_uploads_its_student(run, student, hub):
    repo = hub.repos["org/breast_vitl14"]
    files = repo.commits[repo.branches["main"]]
    assert files["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert b"hf-hub:org/breast_vitl14" in files["README.md"]
    assert "hf_that" not in run.stdout + run.stderr


def test_an_eva_config_that_knows_nothing_of_us_benchmarks_it_by_name(
    run, student, folder, cohort, hub, tmp_path
):
    """Runs the very command that the fit printed last, with the student from the Hub."""
    manifest = pd.DataFrame(
        {
            "path": [str(slide.path.relative_to(folder / "cohort")) for slide in cohort],
            "target": [CENTRES.index(slide.centre) for slide in cohort],
            "split": ["train"] * 4 + ["val"] * 4,
        }
    )
    manifest.to_csv(folder / "cohort" / "eva.csv", index=False)
    variables, config = printed_command(run.stdout)
    result = run_eva(
        "predict_fit",
        config,
        tmp_path,
        **{**variables, "G2L_STUDENT": "hf-hub:org/breast_vitl14"},
        **connection(hub, tmp_path / "hf"),
        DATA_ROOT=folder / "cohort",
        OUTPUT_ROOT=tmp_path / "logs",
        EMBEDDINGS_ROOT=tmp_path / "embeddings",
    )
    assert result.returncode == 0, result.stderr
    assert "NORMALIZE_MEAN=" in result.stderr
    embeddings = list((tmp_path / "embeddings").rglob("*.pt"))
    assert embeddings
    (results,) = (tmp_path / "logs").glob("*/results.json")
    assert (
        0 <= json.loads(results.read_text())["metrics"]["val"][0]["val/MulticlassAccuracy"]["mean"]
    )


def test_without_access_to_the_teacher_one_message_says_what_to_do(folder, slides, tmp_path):
    result = run_eva(
        "fit",
        ROOT / "configs" / "g2l_breast.yaml",
        tmp_path,
        STUDENT="timm:vit_tiny_patch16_224",
        STUDENT_PRETRAINED="false",
        SLIDES_ROOT=slides,
        HF_HOME=tmp_path / "hf",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    for part in ("bioptimus/H-optimus-0", "Ask for access at", "TEACHER=hf-hub:1aurent/"):
        assert part in message


def test_a_slide_without_mpp_names_the_setting(teacher, write_slide, tmp_path):
    write_slide(tmp_path / "slides" / "unknown.tiff", mpp=None)
    result = run_eva(
        "fit",
        ROOT / "configs" / "g2l_breast.yaml",
        tmp_path,
        TEACHER=f"local-dir:{teacher}",
        STUDENT=f"local-dir:{teacher}",
        SLIDES_ROOT=tmp_path / "slides",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(r"^error: .*unknown\.tiff has no microns.*OVERWRITE_MPP", result.stderr, re.M)
