"""Benchmark configs through eva's command line, on tasks as small as tests can make them."""

import json

import numpy as np
import pandas as pd
from helpers import ROOT, run_eva
from PIL import Image

CONFIGS = ROOT / "configs" / "benchmarks"
MODEL = {"MODEL_NAME": "universal/vit_tiny_patch16_224_random", "IN_FEATURES": 192, "N_RUNS": 2}
# eva has the workers of embeddings spawned: each imports all of eva.
HERE = {"N_DATA_WORKERS": 0}


def write_tiles(root):
    """Red and blue tiles of ten patients; returns the manifest's rows."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        patient, label = number // 6, number % 2
        image = rng.integers(0, 60, (32, 32, 3), np.uint8)
        image[..., 2 * label] += 180
        path = root / f"{patient}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        split = "train" if patient < 6 else "val" if patient < 8 else "test"
        rows.append((f"{patient}/{number}.png", label, split, patient))
    return pd.DataFrame(rows, columns=["path", "label", "split", "patient"])


def metrics_of(folder, split):
    (results,) = folder.glob("logs/**/results.json")
    return json.loads(results.read_text())["metrics"][split][0]


def test_tiles_of_a_manifest_in_two_classes(tmp_path):
    root = tmp_path / "data" / "idc"
    manifest = write_tiles(root)
    manifest.to_csv(root / "manifest.csv", index=False)
    result = run_eva(
        "predict_fit", CONFIGS / "idc.yaml", tmp_path, **MODEL, **HERE, RESIZE_DIM=32, MAX_STEPS=20
    )
    assert result.returncode == 0, result.stderr
    metrics = metrics_of(tmp_path, "test")
    assert len(metrics["test/BinaryBalancedAccuracy"]["values"]) == 2
    assert metrics["test/KNNAccuracy"]["values"] == [1, 1]
    assert metrics["test/LogisticAUROC"]["mean"] == 1
    (found,) = tmp_path.glob("logs/**/run_0/metrics/test.json")
    assert json.loads(found.read_text())["n_units"] == 2

    cut = root / "9" / "57.png"
    cut.write_bytes(cut.read_bytes()[:300])
    result = run_eva("predict_fit", CONFIGS / "idc.yaml", tmp_path, **MODEL, RESIZE_DIM=32)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: Tile data/idc/9/57.png cannot be read"), last

    (root / "0" / "3.png").unlink()
    result = run_eva("predict_fit", CONFIGS / "idc.yaml", tmp_path, **MODEL)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "3.png" in last, last


def last_line(tmp_path, config, **environment):
    """The error that an evaluation ends with."""
    result = run_eva("predict_fit", CONFIGS / config, tmp_path, **environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_what_is_wrong_with_a_benchmark_is_said_in_a_line(tmp_path):
    photos = tmp_path / "bach" / "ICIAR2018_BACH_Challenge" / "Photos"
    for name in ("Benign", "InSitu", "Invasive", "Normal"):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(photos / name / "1.tif")
    root = tmp_path / "bach"
    assert last_line(tmp_path, "bach.yaml", DATA_ROOT=root).startswith(
        f"error: BACH in {root} is incomplete: images of its 268"
    )
    missing = last_line(tmp_path, "bach.yaml", DATA_ROOT=tmp_path / "none")
    assert missing.startswith(f"error: BACH: Dataset not found at '{tmp_path / 'none'}'")
    typo = last_line(tmp_path, "bach.yaml", MODEL_NAME="pathology/kaiko_vits61")
    assert typo.startswith("error: eva has no backbone 'pathology/kaiko_vits61' (MODEL_NAME). Near")
    assert "pathology/kaiko_vits16" in typo
    offline = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    no_network = last_line(tmp_path, "panda.yaml", **offline, EVA_HOME=tmp_path)
    assert no_network.startswith("error: PANDA: <urlopen error"), no_network


def test_slides_of_a_manifest(tmp_path, write_slide):
    root = tmp_path / "slides"
    rows = []
    for number in range(12):
        name = f"TCGA-A{number % 3}-{number:04d}-01Z-00-DX1.tiff"
        write_slide(root / name, size=512 + 64 * (number % 2))
        split = "train" if number < 4 else "val" if number < 8 else "test"
        rows.append((name, number % 2, split))
    table = pd.DataFrame(rows, columns=["path", "target", "split"])
    table.to_csv(tmp_path / "tp53.csv", index=False)
    result = run_eva(
        "predict_fit",
        CONFIGS / "tp53.yaml",
        tmp_path,
        **MODEL | {"N_RUNS": 1},
        **HERE,
        DATA_ROOT=root,
        MANIFEST_FILE=tmp_path / "tp53.csv",
        RESIZE_DIM=32,
        N_PATCHES=3,
        MAX_EPOCHS=1,
        KNN_K=3,
    )
    assert result.returncode == 0, result.stderr
    metrics = metrics_of(tmp_path, "test")
    assert len(metrics["test/BinaryBalancedAccuracy"]["values"]) == 1
    assert 0 <= metrics["test/KNNAccuracy"]["mean"] <= 1
    (table,) = tmp_path.glob("logs/**/run_0/metrics/test.parquet")
    table = pd.read_parquet(table)
    assert len(table) == 4 and table["patient"].iloc[0].startswith("TCGA-A")
    assert set(table["centre"]) == {"A0", "A1", "A2"}
