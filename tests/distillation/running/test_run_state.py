import numpy as np

from g2l_plugin.distillation.running.run_state import RunState
from g2l_plugin.metrics.alignment import Estimate
from g2l_plugin.runs.validation import Alignment


def alignment(cka, neighbours=0.4):
    estimates = {
        name: Estimate(value, tuple(value + 0.001 * n for n in range(5)))
        for name, value in (("val/cka", cka), ("val/shared_neighbours", neighbours))
    }
    values = {name: estimate.value for name, estimate in estimates.items()}
    return Alignment(values | {"val/effective_rank": float("nan")}, estimates)


PATIENTS = np.array(["a", "b", "b", "c", "d", "e"])


def test_the_change_is_from_the_start_to_the_last_validation():
    state = RunState()
    state.validated(0, 6, PATIENTS, alignment(0.5))
    state.validated(200, 6, PATIENTS, alignment(0.6))
    assert state.start["step"] == 0 and state.alignment["step"] == 200
    assert (state.alignment["tiles"], state.alignment["patients"]) == (6, 5)
    assert np.allclose(state.change["val/cka"], 0.1)  # each patient changed as much
    assert "val/effective_rank" not in state.alignment  # JSON has no NaN


def test_validations_of_other_patients_are_not_compared():
    state = RunState()
    state.validated(0, 6, PATIENTS, alignment(0.5))
    other = alignment(0.6)
    other.estimates["val/cka"] = Estimate(0.6, (0.6,))
    state.validated(200, 6, PATIENTS, other)
    assert state.change["val/cka"] == [None, None, None]


def test_a_student_that_is_not_better_after_500_steps_is_warned_of_once(warned):
    state = RunState()
    state.validated(0, 6, PATIENTS, alignment(0.8))
    state.validated(400, 6, PATIENTS, alignment(0.6))
    state.validated(600, 6, PATIENTS, alignment(0.9))
    assert not warned
    for step in (800, 1000):
        state.validated(step, 6, PATIENTS, alignment(0.6))
    (message,) = warned
    assert "After 800 steps the student is further from its teacher" in message
    assert "CKA with the teacher 0.800 → 0.600" in message and "g2l_robust.yaml" in message


def test_a_student_that_is_better_is_not(warned):
    state = RunState()
    state.validated(0, 6, PATIENTS, alignment(0.8))
    state.validated(600, 6, PATIENTS, alignment(0.9))
    assert not warned
