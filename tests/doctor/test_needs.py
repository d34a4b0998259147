import re

import pytest
from helpers import ROOT, cache_weights

from g2l_plugin.doctor import needs


def test_the_disk_that_is_needed_is_that_of_the_cost_page(settings):
    text = (ROOT / "docs" / "cost.md").read_text()
    row = {name: float(gb) for name, gb in re.findall(r"^\| (.+) \| ([\d.]+) \|$", text, re.M)}
    checkpoints = row["three checkpoints (two kept, one being written)"] + row["last.ckpt"]
    written = checkpoints + row["the published student"]
    assert needs.output_size(settings) / 1e9 == pytest.approx(written, abs=0.15)
    (embeddings,) = (gb for name, gb in row.items() if "embeddings" in name)
    assert needs.cache_size(settings) / 1e9 == pytest.approx(embeddings, abs=0.05)


def test_weights_that_are_in_the_cache_are_not_downloaded(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    both = needs.download_size(settings)
    assert both == (1_134_774_272 + 303_657_216) * 4
    cache_weights(tmp_path, "bioptimus/H-optimus-0")
    assert needs.download_size(settings) == 303_657_216 * 4


def test_only_workers_that_are_not_forked_need_shared_memory(settings):
    assert needs.shared_memory(settings, 8, 1, forked=True) == 0
    assert needs.shared_memory(settings, 0, 1, forked=False) == 0
    spawned = needs.shared_memory(settings, 8, 1, forked=False)
    assert spawned == (8192 + 8 * 2 * 32) * 256 * 256 * 3
