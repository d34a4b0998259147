import json

import cost as script
import pytest
from helpers import ROOT


@pytest.fixture
def cost(capsys):
    def printed(*arguments):
        script.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return printed


def test_the_cost_page_is_the_output_of_its_script(cost):
    assert cost() == (ROOT / "docs" / "cost.md").read_text()


def test_tiles_per_core_are_those_measured_on_the_page_about_reading():
    slides, packed = (str(script.TILES_PER_CORE[name]) for name in ("slides", "packed"))
    (row,) = (
        line
        for line in (ROOT / "docs" / "reading.md").read_text().splitlines()
        if line.startswith("| 40x, JPEG, file tiles of 240 px (")
    )
    ours, in_shards = (cell.split()[0] for cell in row.strip("| ").split("|")[4:7:2])
    assert (slides, packed) == (ours, in_shards.replace(",", ""))


def test_costs_use_the_measured_share(cost, tmp_path):
    ways = {"eva": {"of_limit": [0.2, 0.3, 0.4]}}
    results = {"device": "a GPU", "comparisons": [{"batch_size": 512, "ways": ways}]}
    (tmp_path / "training.json").write_text(json.dumps(results))
    page = cost("--training", tmp_path / "training.json", "--price", "H200=7")
    assert "training 30% of that (measured on a GPU at batches of 512)" in page
    row = next(line for line in page.splitlines() if line.startswith("| 1 x H200"))
    rate, hours, cached, _, _, price, total = (
        float(cell.replace(",", "")) for cell in row.strip("| ").split("|")[1:]
    )
    # arXiv 2510.11176's networks: 1,102.9 GFLOP per tile, 494.4 of them the student's.
    assert rate == pytest.approx(658e12 * 0.3 / 1102.9e9, rel=0.01)
    assert hours == pytest.approx(7.5e6 / rate / 3600, abs=0.06)
    assert cached == pytest.approx(hours * 494.4 / 1102.9, abs=0.06)
    assert total == pytest.approx(7 * 7.5e6 / rate / 3600, abs=0.6) and price == 7
