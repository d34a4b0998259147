import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import ROOT, run_command, run_eva, run_script, save_tiny_model

from g2l_plugin import registration

# With other variables of the Hub than the tests', a command is forked where torch has been imported
# and eva has not.
WITHOUT_EVA = {"HF_HUB_DISABLE_TELEMETRY": "1"}


def run_python(code, *paths, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def install(folder: Path, name: str, entry_points: str, **modules: str) -> Path:
    """Lays out a package as pip does, enough for its entry points to be found."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


def test_importing_torch_loads_nothing_heavy_of_ours():
    result = run_python(
        "import torch, sys; print(sorted(m for m in sys.modules if m.startswith('g2l_plugin')));"
        "print([m for m in ('eva', 'timm', 'lightning', 'openslide') if m in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    ours, heavy = result.stdout.splitlines()
    assert ours == "['g2l_plugin', 'g2l_plugin.registration', 'g2l_plugin.telemetry']"
    assert heavy == "[]"


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path, monkeypatch):
    """It would keep a device's identity, and what it is yet to send, in the user's home."""
    pytest.importorskip("onnxruntime")
    for name in ("ORT_DISABLE_TELEMETRY", "CI"):  # this process has the first; both silence it
        monkeypatch.delenv(name, raising=False)
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    result = run_python("import torch, onnxruntime", **environment)
    assert result.returncode == 0, result.stderr
    assert not [*tmp_path.rglob("*")]


def test_importing_the_package_loads_neither_torch_nor_eva():
    result = run_python(
        "import g2l_plugin, sys; print([m for m in ('torch', 'eva') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


def test_torch_works_without_eva_and_with_the_plugin_switched_off():
    result = run_python("import sys; sys.modules['eva'] = None; import torch; print('fine')")
    assert (result.stdout.strip(), result.stderr) == ("fine", "")
    result = run_python(
        "from eva.vision.models.networks.backbones import backbone_registry as r;"
        "print([name for name in r.entries() if name.startswith('g2l/')])",
        G2L_PLUGIN_AUTOLOAD="0",
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_eva_finds_our_students_and_those_of_others_and_a_broken_one_harms_nobody(tmp_path):
    student = save_tiny_model(tmp_path / "student", depth=2)
    acme = install(
        tmp_path / "acme",
        "acme",
        "[eva.backbones]\nacme/vit = acme_models:vit\nacme/late = acme_models:missing\n"
        "acme/gone = acme_gone:vit\nacme/odd = not an object\ng2l/student = acme_models:vit\n"
        "pathology/kaiko_vits16 = acme_models:vit\n",
        acme_models="""
            import torch
            def vit(out_indices=None, width=3):
                return torch.nn.Linear(width, 5)
        """.replace("\n            ", "\n"),
    )
    code = """
from eva.vision.models import ModelFromRegistry
from eva.vision.models.networks.backbones import backbone_registry
import sys, jsonargparse, torch
ours = ModelFromRegistry("g2l/student", {"out_indices": None}, {"source": SOURCE})
print(ours(torch.zeros(1, 3, 32, 32)).shape)
maps = ModelFromRegistry("g2l/student", {"out_indices": 1}, {"source": SOURCE})
print([m.shape for m in maps(torch.zeros(1, 3, 32, 32))])
theirs = ModelFromRegistry("acme/vit", {"out_indices": 1, "unknown": 2}, {"width": 7})
print(theirs(torch.zeros(1, 7)).shape)
print(sorted(n for n in backbone_registry.entries() if n.startswith(("acme/", "g2l/"))))
try:
    ModelFromRegistry("acme/late")
except ImportError as error:
    print(error)
print(sys.excepthook.__module__.startswith("g2l_plugin"))
from eva.core.cli import setup  # what the command line calls first
setup.setup()
parser = jsonargparse.ArgumentParser()
parser.add_argument("--callbacks", type=list[torch.nn.Module] | torch.nn.Module | None)
backbone = {"class_path": "eva.vision.models.ModelFromRegistry"}
backbone["init_args"] = {"model_name": "g2l/breast_vitl14"}
parser.instantiate_classes(parser.parse_object({"callbacks": [backbone]}))
""".replace("SOURCE", repr(f"local-dir:{student}"))
    (acme / "script.py").write_text(code)
    result = run_script(acme / "script.py", **WITHOUT_EVA, G2L_HUB_NAMESPACE="")
    assert result.stdout.count("\n") == 6, result.stderr
    shape, maps, theirs, names, late, hooked = result.stdout.splitlines()
    assert shape == "torch.Size([1, 32])"
    assert maps == "[torch.Size([1, 32, 4, 4])]"
    assert theirs == "torch.Size([1, 5])"
    assert names == str(
        ["acme/late", "acme/vit", "g2l/breast_vitl14", "g2l/prostate_vitl14", "g2l/student"]
    )
    assert "'acme/late' (entry point 'acme_models:missing'" in late and "of acme" in late
    for named in (
        r"'acme/gone' .*no package 'acme_gone'",
        r"'acme/odd' .*does not have the form",
        r"'g2l/student' .*already registered",
        r"'pathology/kaiko_vits16' .*already registered",
    ):
        assert re.search(named, result.stderr), (named, result.stderr)
    # Errors of users are short on the command line, and whole in a Python session.
    assert hooked == "False"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: g2l/breast_vitl14 needs a Hub namespace"
    )
    assert "Traceback" not in result.stderr


def test_what_fails_in_a_hook_is_a_warning_also_where_warnings_are_errors(monkeypatch, capsys):
    def fails(module):
        raise OSError("no disk")

    with pytest.warns(UserWarning, match=r"fails failed: OSError\('no disk'\)"):
        registration._guarded(fails)(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration._guarded(fails)(None)
    assert "fails failed" in capsys.readouterr().err
    monkeypatch.delenv("G2L_PLUGIN_AUTOLOAD", raising=False)
    monkeypatch.setitem(sys.modules, "wrapt", None)
    with pytest.warns(UserWarning, match="eva will not find its backbones"):
        registration.autoload()


def test_evas_command_line_knows_the_trainer_and_the_module():
    """As known subclasses in `eva fit --help`, and by their bare names in `--trainer.help`."""
    found = run_command("eva", "fit", "--help", COLUMNS="500").stdout
    assert "g2l_plugin.KDTrainer" in found and "g2l_plugin.DistillationModule" in found
    found = run_command("eva", "fit", "--trainer.help=KDTrainer", **WITHOUT_EVA).stdout
    assert "--trainer.resume" in found


def test_a_variable_of_a_wrong_type_is_one_line(tmp_path):
    config = ROOT / "configs" / "quickstart.yaml"
    result = run_eva("fit", config, tmp_path, BATCH_SIZE="many")
    assert result.returncode == 2
    *_, tip, error = result.stderr.splitlines()
    assert tip.startswith("tip: ")
    assert error == "error: train.batch_size is 'many': expected int or null"
