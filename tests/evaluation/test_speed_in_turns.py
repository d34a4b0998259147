import itertools
import time

import pytest
import torch
from helpers import save_tiny_model
from torch import nn

from g2l_plugin import cli
from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.evaluation import speed_in_turns
from g2l_plugin.evaluation.speed_in_turns import time_in_turns


def fastest(timed):
    return max(timed.batches, key=lambda batch: batch.tiles_per_second)


class Sleeper(nn.Module):
    """A network whose batch takes as long as it is told."""

    num_features = 4

    def __init__(self, calls, milliseconds):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 4) * milliseconds)
        self.calls, self.milliseconds = calls, milliseconds

    def forward(self, images):
        time.sleep(self.milliseconds / 1000)
        self.calls.append((self.milliseconds, len(images)))
        return images.new_ones(len(images), 8) @ self.weight


def encoder_of(network):
    provenance = Provenance("timm:x", pretrained=False)
    return Encoder(network, mean=[0.0] * 3, std=[1.0] * 3, provenance=provenance).eval()


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(speed_in_turns, "_LEAST_SECONDS", 0.03)
    monkeypatch.setattr(speed_in_turns, "_PRODUCT_SIDE", {"cpu": 64})
    return []


def test_speeds_are_those_of_the_networks_and_every_round_begins_with_another(calls):
    encoders = {"fast": encoder_of(Sleeper(calls, 4)), "slow": encoder_of(Sleeper(calls, 12))}
    (fast, slow), product = time_in_turns(encoders, {"fast": 8, "slow": 8}, [1, 3], rounds=4)
    assert [batch.batch_size for batch in fast.batches] == [1, 3]
    for timed, milliseconds in ((fast, 4), (slow, 12)):
        for batch in timed.batches:
            # Sleeping may take longer than asked for, never less.
            assert batch.tiles_per_second <= 1000 * batch.batch_size / milliseconds
            assert batch.low <= batch.tiles_per_second <= batch.high
    assert 2 < fastest(fast).tiles_per_second / fastest(slow).tiles_per_second < 4
    assert fastest(fast).batch_size == 3
    assert fast.flops == 2 * 8 * 4 and fast.parameters == 32
    assert fastest(fast).of_product == pytest.approx(
        fastest(fast).tiles_per_second * 64 / product, rel=0.8
    )
    turns = [turn for turn, _ in itertools.groupby(calls)]
    warmed = turns[-16:]  # of each round four
    assert {warmed[start] for start in range(0, 16, 4)} == {(4, 1), (4, 3), (12, 1), (12, 3)}


def test_a_batch_that_does_not_fit_is_left_out(calls):
    class Large(Sleeper):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    (timed,), _ = time_in_turns({"large": encoder_of(Large(calls, 1))}, {"large": 8}, [2, 4], 1)
    assert [batch.batch_size for batch in timed.batches] == [2]
    (none,), product = time_in_turns({"large": encoder_of(Large(calls, 1))}, {"large": 8}, [4], 1)
    assert none.batches == () and product == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--rounds", "0"], "--rounds is 0. Expected 1 or more."),
        (["a", "--batch-sizes", "4", "0"], "--batch-sizes is [4, 0]. Expected 1 or more."),
        (["a", "a"], "are both called a. Name one of them: LABEL=MODEL."),
        (["a", "--device", "cuda"], "--device is cuda, but PyTorch finds no GPU here."),
    ],
)
def test_what_cannot_be_timed_is_said_in_a_line(words, message, tmp_path, monkeypatch, capsys):
    save_tiny_model(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["speed", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "speed.json").exists()
