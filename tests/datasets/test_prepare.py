import re

import numpy as np
import pytest
from helpers import run_g2l
from PIL import Image

from g2l_plugin import cli
from g2l_plugin.cli import prepare


@pytest.fixture
def idc(tmp_path):
    root = tmp_path / "idc data"
    for patient in range(10253, 10263):
        for label in (0, 1):
            folder = root / str(patient) / str(label)
            folder.mkdir(parents=True)
            Image.new("RGB", (50, 50)).save(folder / f"{patient}_idx5_x1_y1_class{label}.png")
    return root


@pytest.fixture
def tiger(tmp_path):
    root = tmp_path / "wsirois" / "roi-level-annotations"
    for number in range(6):
        mask = np.ones((64, 128), np.uint8)
        mask[:, 64:] = 7
        for name in ("tissue-bcss", "tissue-cells"):
            slide = f"TCGA-A2-A0C{number}-01Z-00-DX1" if name == "tissue-bcss" else f"10{number}S"
            for kind, image in (("masks", mask), ("images", np.zeros((64, 128, 3), np.uint8))):
                (root / name / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / name / kind / f"{slide}_[1, 2, 3, 4].png")
    return tmp_path


def test_the_output_ends_with_the_variables_of_the_config(idc, tmp_path, capsys):
    assert cli.main(["prepare", "idc", str(idc), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"0 +│ +6 +│ +2 +│ +2 +│ +10", out)
    assert re.search(r"patients +│ +6 +│ +2 +│ +2 +│ +10", out)
    manifest = tmp_path / "out" / "manifest.csv"
    assert out.splitlines()[-1].endswith(f"DATA_ROOT={idc} MANIFEST_FILE={manifest}")
    assert manifest.is_file()


def test_the_root_of_cut_tiles_is_the_output(tiger, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "out"), "--size", "64", "--workers", "1"]
    assert cli.main(["prepare", "tiger", str(tiger), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"DATA_ROOT={tmp_path / 'out'} " in out.splitlines()[-1]
    assert re.search(r"centres +│ +2 +│", out)


def test_the_help_of_every_task_names_its_source(capsys):
    for task in prepare._TASKS:
        with pytest.raises(SystemExit) as stop:
            cli.main(["prepare", task, "--help"])
        assert stop.value.code == 0
        assert re.search(r"https?://", capsys.readouterr().out)


@pytest.mark.parametrize(
    "task", ["tils", "idc", "aggc22", "chimera", "tiger", "pathorob", "plism", "hest"]
)
def test_an_empty_folder_is_a_one_line_error(task, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["prepare", task, str(tmp_path / "empty"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and "http" in error
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_the_console_script_prepares_too(idc, tmp_path):
    result = run_g2l("prepare", "idc", idc, "--output", tmp_path / "out", "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert "MANIFEST_FILE=" in result.stdout
    result = run_g2l("prepare", "tp53", idc, "--output", tmp_path / "out")
    assert result.returncode == 2 and "--mutations" in result.stderr
