"""`g2l benchmark` of tasks of one's own, through the real eva."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import run_g2l
from PIL import Image

FEW = {
    "MAX_STEPS": "3",
    "N_RUNS": "1",
    "N_DATA_WORKERS": "1",
    "ACCELERATOR": "cpu",
    "MAX_TILES": "60",
}


def values_of(output, label, task):
    (file,) = (output / "logs" / label / task).rglob("results.json")
    return {name for name in json.loads(file.read_text())["metrics"]["test"][0]}


@pytest.mark.slow
def test_manifests_of_two_and_of_three_classes_need_nothing_but_their_path_and_columns(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        image = rng.integers(0, 60, (32, 32, 3), np.uint8)
        image[..., number % 3] += 180
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", "rgb"[number % 3], number // 6))
    table = pd.DataFrame(rows, columns=["image", "diagnosis", "patient"])
    table.to_csv(tmp_path / "three.csv", index=False)
    two = table[table["diagnosis"] != "b"].assign(
        diagnosis=lambda rows: rows["diagnosis"].map({"r": 0, "g": 1})
    )
    two.to_csv(tmp_path / "two.csv", index=False)
    output = tmp_path / "out"
    words = ["benchmark", "demo:teacher", "--output", output]
    manifests = [tmp_path / "two.csv", f"colours={tmp_path / 'three.csv'}"]
    columns = ["--columns", "path=image", "label=diagnosis"]
    result = run_g2l(*words, "--manifest", *manifests, *columns, **FEW)
    assert result.returncode == 0, result.stderr
    assert "test/BinaryBalancedAccuracy" in values_of(output, "teacher", "two")
    assert "test/MulticlassAccuracy" in values_of(output, "teacher", "colours")
    tiles = pd.read_csv(output / "embeddings" / "teacher" / "colours" / "manifest.csv")
    assert tiles.groupby("patient")["split"].nunique().max() == 1 and len(tiles) == 60
