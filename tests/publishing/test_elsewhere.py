"""A student that other software distilled: described, carded, and ready for the other commands."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from helpers import run_g2l, save_tiny_model
from huggingface_hub import ModelCard
from PIL import Image

from g2l_plugin import cli
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.compare import compare_on_images
from g2l_plugin.publishing.elsewhere import publish_elsewhere
from g2l_plugin.slides.image_set import find_images


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save_tiny_model(folder / "teacher"), save_tiny_model(folder / "student", seed=1)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    rows = ["path,patient"]
    for number in range(40):
        colour = generator.integers(0, 255, (1, 1, 3))
        noise = generator.integers(-40, 40, (48, 40, 3))
        pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,patient-{number % 8}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_a_model_gets_a_folder_whose_card_says_what_is_known_and_what_is_not(
    models, tiles, tmp_path
):
    teacher, student = models
    folder = tmp_path / "described"
    ran = run_g2l(
        "publish", student, "--teacher", f"local-dir:{teacher}", "--tiles", tiles / "manifest.csv",
        "--cancer", "lung", "--license", "mit", "--output", folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"Student: {folder}" in ran.stdout
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = timm.create_model(f"local-dir:{student}", pretrained=True).eval()(images)
        assert torch.equal(network(images), expected)
    text = (folder / "README.md").read_text()
    for said in (
        "Other software trained it.",
        "for lung cancer",
        f"| teacher | local-dir:{teacher.name}: model.safetensors sha256",
        f"| this model | local-dir:{student.name}: model.safetensors sha256",
        "| what it started from | not known |",
        "on 40 tiles of 8 patients, which it may have been trained on",
    ):
        assert said in text
    for unsaid in ("G2L", "## Training\n", "Not yet trained", "held-out", str(tmp_path), "nan"):
        assert unsaid not in text
    found = json.loads((folder / "results.json").read_text())["alignment"]
    assert f"| {found['val/cka']:.4f} |" in text
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "mit" and "g2l" not in data.tags
    assert data.eval_results[0].metric_value == pytest.approx(found["val/cka"], abs=1e-6)


def test_without_tiles_nothing_is_claimed(models, tmp_path):
    teacher, student = (load_encoder(f"local-dir:{model}") for model in models)
    published = publish_elsewhere(student, teacher, tmp_path / "described")
    text = (published.folder / "README.md").read_text()
    assert "Nothing yet." in text and "comparison below" not in text
    assert published.license.identifier == "apache-2.0"  # as both models


def test_the_patients_that_a_model_lists_stay_with_it(models, tmp_path):
    listed = ["0" * 16, "unknown"]
    folder = shutil.copytree(models[1], tmp_path / "student")
    (folder / "patients.txt").write_text("\n".join(listed))
    student, teacher = (load_encoder(f"local-dir:{model}") for model in (folder, models[0]))
    published = publish_elsewhere(student, teacher, tmp_path / "described")
    assert load_encoder(f"local-dir:{published.folder}").training_patients == listed
    assert "`patients.txt` lists 1 patient," in (published.folder / "README.md").read_text()


def test_a_model_is_as_its_teacher_where_it_is_its_teacher(models, tiles):
    teacher = load_encoder(f"local-dir:{models[0]}")
    same = load_encoder(f"local-dir:{models[0]}")
    values = compare_on_images(same, teacher, find_images(tiles))
    assert values["val/cka"] == pytest.approx(1) and values["val/shared_neighbours"] == 1
    assert values["tiles"] == 40
    assert "patients" not in values and "val/cka_low" not in values  # a folder names no patients


def test_images_are_evenly_spread(models, tiles):
    student, teacher = (load_encoder(f"local-dir:{model}") for model in models)
    images = find_images(tiles / "manifest.csv")
    values = compare_on_images(student, teacher, images, max_images=20)
    assert (values["tiles"], values["patients"]) == (20, 4)  # every second one
    assert "val/cka_low" not in values  # four patients give no interval


def test_too_few_images_are_refused(models, tiles, tmp_path):
    (tmp_path / "0.png").write_bytes((tiles / "0.png").read_bytes())
    teacher = load_encoder(f"local-dir:{models[0]}")
    with pytest.raises(UserError, match="1 images are too few.*at least 20"):
        compare_on_images(teacher, teacher, find_images(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{student}"], "name its teacher (--teacher MODEL)"),
        (["{student}", "--tiles", "{tiles}"], "--tiles compares"),
        (["{student}", "--teacher", "{teacher}"], "--output DIR"),
        (["{student}", "--teacher", "nothing", "--output", "out"], "Unknown model 'nothing'"),
        (["{student}", "--teacher", "{teacher}", "--output", "out", "--force"], "for a run"),
        (["{run}", "--teacher", "{teacher}", "--output", "out"], "it knows its teacher"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    models, tiles, tmp_path, monkeypatch, capsys, options, said
):
    monkeypatch.chdir(tmp_path)
    teacher, student = models
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    names = {"teacher": teacher, "student": student, "tiles": tiles, "run": tmp_path / "run"}
    assert cli.main(["publish", *(part.format(**names) for part in options)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in "\n".join(lines) and len(lines) <= 2
    assert not (tmp_path / "out").exists()
