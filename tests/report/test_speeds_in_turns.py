import json

from helpers import save_tiny_model

from g2l_plugin import cli
from g2l_plugin.encoders.load import load_encoder
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.evaluation import speed_in_turns
from g2l_plugin.report.models import Speed
from g2l_plugin.report.page import speed_text


def test_the_command_times_models_and_the_report_takes_their_speeds(
    tmp_path, monkeypatch, capsys, write_session
):
    for seed, name in enumerate(("a", "b")):
        save_tiny_model(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed_in_turns, "_LEAST_SECONDS", 0.01)
    words = ["speed", "a", "other=b", "--batch-sizes", "1", "4", "--rounds", "2", "--device", "cpu"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "other" in printed and "TFLOP/s" in printed and "Values: speed.json" in printed
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [model["name"] for model in found["models"]] == ["a", "other"]

    encoder = load_encoder(f"local-dir:{tmp_path / 'a'}")
    facts = {"sha256": hash_tensors(encoder.model), "device": "CPU", "tiles_per_second": 1.0}
    write_session("one", model="one", values={"KNNAccuracy": 0.9}, facts=facts)
    report = ["report", "logs", "--output", "report"]
    assert cli.main(report) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "under the load of its time" in page
    assert cli.main([*report, "--speed", "speed.json"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    page = page.replace("\\", "")  # of escapes
    assert "The models took turns" in page and "under the load" not in page
    (own,) = (model for model in found["models"] if model["sha256"] == facts["sha256"])
    fastest = max(own["batches"], key=lambda batch: batch["tiles_per_second"])
    shown = Speed("", fastest["tiles_per_second"], None, 4, 32, (fastest["low"], fastest["high"]))
    row = f"| {speed_text(shown)} | {found['device']}, 32-true | 32 | {fastest['batch_size']} |"
    assert row in page

    capsys.readouterr()
    (tmp_path / "speed.json").write_text(json.dumps(found | {"models": found["models"][1:]}))
    assert cli.main([*report, "--speed", "speed.json"]) == 1
    assert "None of the models of speed.json has results here" in capsys.readouterr().err
    (tmp_path / "speed.json").write_text("{}")
    assert cli.main([*report, "--speed", "speed.json"]) == 1
    assert "cannot be read ('models')" in capsys.readouterr().err
