import re

import pytest
from helpers import ROOT

from g2l_plugin.errors import UserError
from g2l_plugin.planning.gpus import GPUS, find_gpu
from g2l_plugin.planning.speed import step_flops, step_share, tiles_per_second

TEACHER, STUDENT = 608_300_000_000, 164_800_000_000
"""Operations of a tile: docs/cost.md."""


def test_the_speeds_on_the_page_are_those_that_were_measured():
    rows = re.findall(
        r"^\| (eager|`COMPILE=true`), (\d+)( in micro-batches of 32)? \| (\d+) \|",
        (ROOT / "docs" / "training.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 5
    for kind, batch, parts, measured in rows:
        share = step_share(int(batch), bool(parts), kind != "eager")
        rate = tiles_per_second(989, step_flops(TEACHER, STUDENT, bool(parts)), share)
        assert rate == pytest.approx(int(measured), rel=0.02)


def test_a_cached_teacher_costs_nothing():
    assert step_flops(0, 7) == 21 and step_flops(5, 7) == 26 and step_flops(5, 7, True) == 33


def test_an_unknown_gpu_is_answered_with_those_that_are_known():
    assert find_gpu("H100-80") is GPUS["h100-80"]
    with pytest.raises(UserError, match="Unknown GPU 'h900'.*h200-141, .*rtx4090-24"):
        find_gpu("h900")
