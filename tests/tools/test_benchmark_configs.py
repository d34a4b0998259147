"""The benchmark configs agree with the template, and eva reads them."""

import jsonargparse
import pytest
from benchmark_configs import TASKS, render_configs
from eva.core.interface import Interface
from helpers import ROOT
from omegaconf import OmegaConf
from segmentation_tasks import SEGMENTATION_TASKS

from g2l_plugin.registration import prepare_cli

EVERY = TASKS | SEGMENTATION_TASKS
FOLDER = ROOT / "configs" / "benchmarks"


def test_the_configs_agree_with_the_template():
    rendered = {f"{name}.yaml": text for name, text in render_configs()}
    written = {path.name: path.read_text() for path in FOLDER.glob("*.yaml")}
    assert written == rendered, "run `make benchmark_configs`"


@pytest.mark.parametrize("name", sorted(EVERY))
def test_eva_reads_the_config(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiles.csv").write_text("path,label\na.png,x\nb.png,y\nc.png,z\n")
    monkeypatch.setenv("MANIFEST_FILE", str(tmp_path / "tiles.csv"))
    monkeypatch.setenv("MODEL_NAME", "g2l/student")
    monkeypatch.setenv("MODEL_LABEL", "breast_vitl14")
    prepare_cli()
    with pytest.raises(SystemExit) as exit:
        jsonargparse.CLI(
            Interface,
            args=["predict_fit", "--config", str(FOLDER / f"{name}.yaml"), "--print_config"],
            parser_mode="omegaconf",
            fail_untyped=False,
        )
    assert exit.value.code == 0, capsys.readouterr().err
    config = OmegaConf.create(capsys.readouterr().out)
    callbacks = {item.class_path: item.init_args for item in config.trainer.init_args.callbacks}
    kind = "Segmentation" if name in SEGMENTATION_TASKS else ""
    writer = callbacks[f"g2l_plugin.{kind}EmbeddingsWriter"]
    metrics = callbacks["g2l_plugin.EmbeddingMetrics"]
    assert writer.output_dir == metrics.root == f"data/embeddings/breast_vitl14/{metrics.task}"
    assert config.trainer.init_args.default_root_dir.startswith("logs/breast_vitl14/offline/")
    assert writer.backbone.init_args.model_name == "g2l/student"
    splits = list(writer.dataloader_idx_map.values())
    assert splits == [*EVERY[name].splits]
    assert len(config.data.init_args.datasets.predict) == len(splits)
    for split in splits:
        assert config.data.init_args.datasets[split].init_args.split == split
