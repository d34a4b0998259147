import json
import shutil
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import safetensors
import torch
import transformers
from helpers import run_g2l, save_tiny_model
from hub_server import serve_hub

from g2l_plugin import cli
from g2l_plugin.distillation.losses import LogSumLoss
from g2l_plugin.encoders import backbones
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.errors import UserError
from g2l_plugin.publishing import publish
from g2l_plugin.publishing.callback import PublishStudent
from g2l_plugin.publishing.export.export import export_for
from g2l_plugin.publishing.publish import find_checkpoint, publish_run
from g2l_plugin.runs.record import KEY, RunRecord, describe_objective, record_encoder

EVALUATION = {"task": "tissue", "n_tiles": 9, "n_units": 3, "columns": {}, "encoders": {}}


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that writes a run's folder as training does, and its student."""
    teacher = load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'teacher')}")
    student = load_encoder(f"local-dir:{save_tiny_model(tmp_path / 'start', seed=1)}").eval()

    def make(name="run_0", change=lambda checkpoint: None, **record):
        folder = tmp_path / "session" / name
        (folder / "checkpoints").mkdir(parents=True)
        record = RunRecord(
            teacher=record_encoder(teacher, 32),
            student=record_encoder(student, 32),
            network=timm_config(student),
            objective=describe_objective(LogSumLoss()),
            **{"finished": True, "step": 10, "tiles_seen": 320, "cohort": {"tiles": 99}} | record,
        )
        state = {f"student.{key}": value for key, value in student.state_dict().items()}
        state["objective.projector.weight"] = torch.zeros(2, 2)
        checkpoint = {"state_dict": state, KEY: record.to_dict()}
        change(checkpoint)
        torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
        publish = "{class_path: g2l_plugin.PublishStudent, init_args: {cancer: breast}}"
        config = f"trainer: {{init_args: {{callbacks: [{publish}]}}}}\n"
        (folder / "config.yaml").write_text(config)
        return folder, student

    return make


def test_a_student_that_is_nearer_in_one_way_and_further_in_another_is_said_so(make_run, warned):
    start = {"val/cka": 0.4, "val/shared_neighbours": 0.32}
    alignment = {"val/cka": 0.5, "val/shared_neighbours": 0.25, "tiles": 300, "step": 10}
    change = {"val/cka": [0.1, 0.05, 0.2], "val/shared_neighbours": [-0.07, -0.1, -0.05]}
    run, _ = make_run(
        change=lambda checkpoint: checkpoint[KEY].update(change=change),
        start=start,
        alignment=alignment,
    )
    card = (publish_run(run).folder / "README.md").read_text()
    (warning,) = (text for text in warned if "nearer in another" in text)
    for text in (warning, card):
        assert "shared neighbours 0.320 → 0.250, but CKA with the teacher 0.400 → 0.500" in text


def test_what_a_run_left_that_was_killed_as_it_published_is_removed(make_run):
    run, _ = make_run()
    (run / ".student.abcd.part").mkdir()
    (run / ".student.abcd.part" / "model.safetensors").touch()
    PublishStudent(cancer="breast").on_run_end(None, run)
    assert (run / "student" / "model.safetensors").stat().st_size
    assert not list(run.glob(".student.*"))


def test_a_run_is_published_with_card_results_and_config(make_run, tmp_path):
    run, student = make_run()
    published = publish_run(run.parent, tmp_path / "out")
    assert {path.name for path in published.folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "results.json",
        "config.yaml",
    }
    card = (published.folder / "README.md").read_text()
    assert "for breast cancer" in card and "320 augmented tiles in 10 steps" in card
    assert published.license.identifier == "apache-2.0"
    config = json.loads((published.folder / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        loaded = load_encoder(f"local-dir:{published.folder}").eval()
        assert torch.equal(loaded(images), student(images))
        # transformers reads the same folder.
        wrapped = transformers.AutoModel.from_pretrained(published.folder).eval()
        normalized = (images - student.mean) / student.std
        torch.testing.assert_close(wrapped(normalized).pooler_output, student(images))


def test_onnx_runtime_gives_the_same_for_any_batch(make_run, capsys):
    run, student = make_run()
    assert cli.main(["publish", str(run), "--onnx"]) == 0
    file = run / "student" / "model.onnx"
    assert f"ONNX:    {file}" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file)
    for n_images in (1, 5):
        images = torch.rand(n_images, 3, 32, 32)
        normalized = ((images - student.mean) / student.std).numpy()
        (given,) = session.run(None, {"images": normalized})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(given), student(images), atol=1e-4, rtol=0)
    assert onnx.load(file).opset_import[0].version == 18


def test_nothing_that_is_published_names_a_folder_of_the_machine(make_run, tmp_path):
    run, _ = make_run()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{config}data: {{root: {tmp_path}/slides, size: 224}}\n")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"task": f"{tmp_path}/tissue"}))
    folder = publish_run(run, tmp_path / "out").folder
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert "data:\n  root: slides\n  size: 224\n" in (folder / "config.yaml").read_text()
    assert "local-dir:teacher: model.safetensors sha256" in (folder / "README.md").read_text()


def test_an_unknown_licence_and_a_run_without_a_step_are_refused(make_run):
    run, _ = make_run(step=0)
    with pytest.raises(UserError, match="Did you mean mit"):
        publish_run(run, license="MIT")
    with pytest.raises(UserError, match="Did you mean mit"):
        PublishStudent(license="MIT")
    with pytest.raises(UserError, match="has made no step"):
        publish_run(run, force=True)
    assert not (run / "student").exists()


def test_a_run_that_shall_end_with_onnx_is_not_begun_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"ONNX needs onnxruntime: pip install 'g2l-plugin\[onnx"):
        PublishStudent(onnx=True)


def test_the_same_student_has_the_same_hash(make_run, tmp_path):
    run, _ = make_run()
    files = [publish_run(run, tmp_path / f"{n}").folder / "model.safetensors" for n in range(6)]
    assert len({file.read_bytes() for file in files}) == 1
    with safetensors.safe_open(files[0], "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    provenance = json.loads(files[0].with_name("config.json").read_text())["g2l"]
    assert provenance["step"] == "10"
    assert "teacher: model.safetensors sha256" in provenance["teacher"]


def snippets_of(card):
    return [part.partition("```")[0] for part in card.split("```python\n")[1:]]


def test_the_snippets_of_the_card_run_without_this_package(make_run, tmp_path, monkeypatch):
    run, student = make_run()
    snippets = snippets_of((publish_run(run).folder / "README.md").read_text())
    assert len(snippets) == 3
    timms = snippets[0].replace("hf-hub:OWNER/NAME", f"local-dir:{run / 'student'}")
    code = 'import sys; sys.modules["g2l_plugin"] = None\n' + timms + "print(embeddings.shape)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=99,
    )
    assert result.stdout.strip() == "torch.Size([1, 32])", result.stderr
    exec(snippets[1].replace("OWNER/NAME", str(run / "student")), {})
    export_for(f"local-dir:{run / 'student'}", "onnx", tmp_path / "onnx")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippets[2], names)
    with torch.no_grad():
        black = student(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(torch.from_numpy(names["embeddings"]), black, atol=1e-4, rtol=0)


def test_the_card_names_a_graph_only_if_there_is_one(make_run, monkeypatch):
    run, _ = make_run()
    readme = run / "student" / "README.md"
    publish_run(run, onnx=True)
    assert "is here already, as `model.onnx`" in readme.read_text()
    assert "- onnx\n" in readme.read_text()
    publish_run(run)
    assert "here already" not in readme.read_text() and "- onnx\n" not in readme.read_text()
    assert not readme.with_name("model.onnx").exists()

    def fail(folder):
        raise UserError("differ")

    monkeypatch.setattr(publish, "export_onnx", fail)
    with pytest.raises(UserError, match="differ"):
        publish_run(run, onnx=True)
    assert "here already" not in readme.read_text()


def test_a_run_must_have_ended_but_a_checkpoint_need_not(make_run, tmp_path):
    run, _ = make_run(finished=False)
    with pytest.raises(UserError, match=r"has not ended .step 10.*g2l publish .*last\.ckpt"):
        publish_run(run)
    assert not (run / "student").exists()
    path = find_checkpoint(run)
    assert publish_run(path, tmp_path / "out").folder.is_dir()
    with pytest.raises(UserError, match="There is no .*none/checkpoints/last.ckpt"):
        publish_run(tmp_path / "none")
    with pytest.raises(UserError, match="folder of a model, and not of a run.*hf upload"):
        publish_run(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["state_dict"]["student.model.norm.weight"].fill_(float("nan")),
            "1 of the student's weights are not finite .norm.weight.",
        ),
        (
            lambda c: c["state_dict"].update({"student.model.projector": torch.ones(1)}),
            "not those of the student's network: 1 .*projector.*Nothing is published",
        ),
        (lambda c: c["state_dict"].pop("student.model.norm.weight"), "network: 1 .*norm.weight"),
        (lambda c: c.pop(KEY), "no checkpoint of a distillation"),
    ],
)
def test_a_failed_publication_leaves_nothing(make_run, change, said):
    run, _ = make_run(change=change)
    with pytest.raises(UserError, match=said):
        publish_run(run)
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "evaluation.json",
        "config.yaml",
    }


def test_a_damaged_checkpoint_is_an_error(make_run):
    run, _ = make_run()
    path = find_checkpoint(run)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        publish_run(run)


def test_the_command_publishes_and_reports_restrictions(make_run, tmp_path, capsys):
    def restrict(checkpoint):
        checkpoint[KEY]["teacher"]["provenance"]["license"] = "cc-by-nc-nd-4.0"

    run, _ = make_run(change=restrict)
    assert cli.main(["publish", str(run), "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert f"Student: {tmp_path / 'out'}" in out
    assert "does not allow sharing derivatives" in err
    assert "does not allow sharing derivatives" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(run)
    assert cli.main(["publish", str(run)]) == 1
    assert capsys.readouterr().err.startswith("error: There is no ")


# Runs without this package: importing it fails.
ANYONE = """
import sys
sys.modules["g2l_plugin"] = None
import timm, torch
model = timm.create_model("hf-hub:org/breast_vitl14", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
images = torch.load(sys.argv[1])
mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
with torch.no_grad():
    embeddings = model((images - mean) / std)
from huggingface_hub import hf_hub_download
with open(hf_hub_download("org/breast_vitl14", "README.md"), encoding="utf-8") as file:
    snippet = file.read().split("```python\\n")[-1].partition("```")[0]
tiles = (images * 255).round().permute(0, 2, 3, 1).numpy()
lines = [line for line in snippet.splitlines() if not line.startswith("tiles = ")]
names = {"tiles": tiles}
exec("\\n".join(lines), names)
torch.save((embeddings, torch.from_numpy(names["embeddings"]), config), sys.argv[2])
"""


def test_an_uploaded_student_is_the_same_for_everybody(make_run, tmp_path):
    run, student = make_run()
    images = torch.randint(0, 256, (2, 3, 32, 32)) / 255
    torch.save(images, tmp_path / "images.pt")
    with serve_hub({}) as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "ours"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_that_nobody_may_read",
        }
        command = ("publish", run, "--repo-id", "org/breast_vitl14", "--onnx")
        dry = run_g2l(*command, "--dry-run", **environment)
        assert "model.safetensors" in dry.stdout and "model.onnx" in dry.stdout, dry.stderr
        assert not hub.repos
        result = run_g2l(*command, "--tag", "v1", **environment)
        assert result.returncode == 0, result.stderr
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("On the Hub: ")]
        repo = hub.repos["org/breast_vitl14"]
        assert line.endswith(repo.branches["main"]) and repo.tags["v1"] == repo.branches["main"]
        assert "hf_that" not in result.stdout + result.stderr
        subprocess.run(
            [sys.executable, "-c", ANYONE, tmp_path / "images.pt", tmp_path / "theirs.pt"],
            env={
                "PATH": "",
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "theirs"),
                "HF_HUB_DISABLE_XET": "1",
            },
            check=True,
            timeout=120,
        )
    theirs, by_onnx, config = torch.load(tmp_path / "theirs.pt")
    with torch.no_grad():
        assert torch.equal(theirs, student(images))
    torch.testing.assert_close(by_onnx, theirs, atol=1e-4, rtol=0)
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0


def test_restricted_weights_are_uploaded_only_under_a_named_licence(make_run, capsys):
    def restrict(checkpoint):
        checkpoint[KEY]["teacher"]["provenance"]["license"] = "cc-by-nc-4.0"

    run, _ = make_run(change=restrict)
    assert cli.main(["publish", str(run), "--repo-id", "org/name"]) == 1
    assert "Nothing is uploaded to org/name" in capsys.readouterr().err


def test_an_unfinished_run_is_published_from_its_newest_checkpoint(make_run, tmp_path):
    run, _ = make_run(finished=False)
    checkpoints = run / "checkpoints"
    for step in (20, 3):
        shutil.copy(checkpoints / "last.ckpt", checkpoints / f"step={step:08d}.ckpt")
    (checkpoints / "last.ckpt").unlink()
    newest = checkpoints / "step=00000020.ckpt"
    assert find_checkpoint(run) == find_checkpoint(run.parent) == newest
    with pytest.raises(UserError, match=f"has not ended.*g2l publish {newest}"):
        publish_run(run)
    assert (publish_run(newest).folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("cohort", "wanted", "listed", "said"),
    [
        (
            {"patients": ["0" * 16, "unknown"], "patients_public": True},
            False,
            True,
            "lists 1 patient,",
        ),
        ({"patients": ["0" * 16], "patients_public": False}, False, False, "are not listed"),
        ({"patients": ["0" * 16], "patients_public": False}, True, True, "lists 1 patient,"),
        ({"patients": ["unknown"], "patients_public": True}, True, False, "are not known"),
        ({}, False, False, "are not known"),
    ],
)
def test_patients_are_listed_by_tcga_barcode_or_on_request(
    make_run, tmp_path, cohort, wanted, listed, said
):
    run, _ = make_run(cohort={"tiles": 99} | cohort)
    assert cli.main(["publish", str(run), *["--patients"] * wanted]) == 0
    folder = run / "student"
    card = " ".join((folder / "README.md").read_text().split())
    assert said in card and "0" * 16 not in card
    assert (folder / "patients.txt").exists() == listed
    model = backbones.student(f"local-dir:{folder}")
    assert model.training_patients == (cohort["patients"] if listed else None)
