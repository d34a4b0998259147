"""HEST-Benchmark from its download to the report, through the command lines of eva and g2l."""

import json

import pandas as pd
from helpers import ROOT, run_eva
from hest_download import write_task

from g2l_plugin import cli

CONFIG = ROOT / "configs" / "benchmarks" / "hest_idc.yaml"


def test_a_task_of_hest_goes_from_its_download_to_the_report(tmp_path):
    write_task(tmp_path / "IDC", n_tiles=30)
    output = tmp_path / "data" / "hest_idc"
    assert cli.main(["prepare", "hest", str(tmp_path / "IDC"), "--output", str(output)]) == 0
    result = run_eva(
        "predict_fit",
        CONFIG,
        tmp_path,
        MODEL_NAME="universal/vit_tiny_patch16_224_random",
        IN_FEATURES=192,
        RESIZE_DIM=32,
        N_RUNS=2,
        MAX_STEPS=30,
        HEST_COMPONENTS=16,
        N_DATA_WORKERS=0,
    )
    assert result.returncode == 0, result.stderr
    (results,) = tmp_path.glob("logs/**/results.json")
    metrics = json.loads(results.read_text())["metrics"]["val"][0]
    assert len(metrics["val/MeanPearson"]["values"]) == 2
    values = metrics["val/GenePearson/pca16_ridge"]["values"]
    # Of the genes, half follow the colour of the tile, and half are noise.
    assert values[0] == values[1] and 0.25 < values[0] < 0.6
    assert 0 <= metrics["val/GenePearsonStd/ridge"]["mean"] < 0.3
    (found,) = tmp_path.glob("logs/**/run_0/metrics/val.json")
    genes = json.loads(found.read_text())["details"]["gene_expression"]["ridge"]["genes"]
    assert len(genes) == 50 and set(genes["GENE0"]) == {"0", "1", "2"}
    assert genes["GENE0"]["0"] > genes["GENE49"]["0"]

    assert cli.main(["report", str(tmp_path / "logs"), "--output", str(tmp_path / "report")]) == 0
    table = pd.read_csv(tmp_path / "report" / "report.csv")
    assert {"GenePearson/pca16_ridge", "GenePearson/ridge", "MeanPearson"} <= set(table["metric"])
    assert set(table["task"]) == {"HEST IDC"}
    assert "Gene expression (HEST-Benchmark)" in (tmp_path / "report" / "report.md").read_text()
