import pytest

from g2l_plugin.runs.outcome import describe_outcome, find_contradiction, find_decline

START = {"val/cka": 0.85, "val/shared_neighbours": 0.46}
END = {"val/cka": 0.77, "val/shared_neighbours": 0.5, "tiles": 300, "step": 500}


def test_nothing_validated_is_nothing_to_say():
    assert describe_outcome({}, {}) == ""
    assert find_decline({}, END, {}) is None


def test_an_end_without_a_start_is_described_alone():
    assert describe_outcome({}, END) == (
        "CKA with the teacher 0.770, shared neighbours 0.500, on 300 tiles"
    )


@pytest.mark.parametrize(
    ("cka", "neighbours", "worse"),
    [
        ([-0.08, -0.1, -0.06], [0.0, -0.01, 0.01], True),
        ([-0.08, -0.1, -0.06], [-0.1, -0.2, -0.05], True),
        ([-0.08, -0.2, 0.04], [0.0, -0.01, 0.01], False),  # within its interval
        ([-0.08, -0.1, -0.06], [0.04, 0.03, 0.05], False),  # the other has improved
        ([0.01, 0.0, 0.02], [-0.1, -0.2, -0.05], True),
        ([-0.08, None, None], [0.0, None, None], True),  # without intervals, the value decides
        ([-0.08, None, None], [0.04, None, None], False),
        ([None, None, None], [None, None, None], False),
        ([0.08, 0.06, 0.1], [0.0, -0.01, 0.01], False),
    ],
)
def test_a_decline_is_a_change_below_its_interval_that_nothing_makes_up_for(cka, neighbours, worse):
    change = {"val/cka": cka, "val/shared_neighbours": neighbours}
    decline = find_decline(START, END, change)
    assert (decline is not None) == worse
    if worse and cka[0] is not None and cka[0] < 0:
        assert "CKA with the teacher 0.850 → 0.770" in decline


def test_one_figure_up_and_the_other_down_contradict_each_other():
    change = {"val/cka": [-0.08, -0.1, -0.06], "val/shared_neighbours": [0.04, 0.03, 0.05]}
    assert find_contradiction(START, END, change) == (
        "CKA with the teacher 0.850 → 0.770, but shared neighbours 0.460 → 0.500"
    )
    for unclear in ([0.04, -0.01, 0.09], [-0.04, -0.05, -0.03], [None, None, None]):
        assert find_contradiction(START, END, change | {"val/shared_neighbours": unclear}) is None
