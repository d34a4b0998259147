import os

import pytest
from helpers import ROOT
from planned_cards import planned_card

from g2l_plugin.errors import UserError


@pytest.mark.parametrize("cancer", ["breast", "prostate"])
def test_the_cards_in_the_repository_are_those_of_the_configs(cancer, monkeypatch):
    for name in ("TEACHER", "STUDENT", "MAX_STEPS", "OUTPUT_ROOT", "BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    card = planned_card(ROOT / "configs" / f"g2l_{cancer}.yaml")
    written = (ROOT / "model_cards" / f"{cancer}_vitl14.md").read_text()
    assert card == written, "make cards"
    assert "Not yet trained." in card and "Nothing yet." in card
    assert "608.3" in card and "164.8 GFLOP" in card
    assert f"for {cancer} cancer" in card


def test_of_an_unknown_teacher_nothing_is_said(monkeypatch):
    monkeypatch.setitem(os.environ, "TEACHER", "hf-hub:org/unknown")
    with pytest.raises(UserError, match="hf-hub:org/unknown is not among"):
        planned_card(ROOT / "configs" / "g2l_breast.yaml")
