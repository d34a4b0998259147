import hashlib
from types import SimpleNamespace

import numpy as np

from g2l_plugin.distillation.running.run_state import RunState, _describe_cohort
from g2l_plugin.metrics.alignment import Estimate
from g2l_plugin.runs.validation import Alignment
from g2l_plugin.slides.dataset import TileDataset


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


def test_the_patients_of_training_and_validation_are_recorded(tmp_path, write_slide):
    patients = [f"TCGA-A1-000{number}" for number in range(4)]
    for patient in patients:
        write_slide(tmp_path / "slides" / f"{patient}-01Z-00-DX1.tiff", 512)
    split = {}
    for name in ("train", "val"):
        split[name] = TileDataset(
            str(tmp_path / "slides"),
            width=64,
            height=64,
            keep_duplicates=True,
            split=name,
            index_dir=str(tmp_path / "index"),
        )
        split[name].prepare_data()
        split[name].setup()
    assert len(split["train"].known_patients()) == 3
    trainer = SimpleNamespace(datamodule=SimpleNamespace(datasets=SimpleNamespace(**split)))
    cohort = _describe_cohort(trainer, [])
    own = sorted(hashlib.sha256(patient.encode()).hexdigest()[:16] for patient in patients)
    assert cohort["patients"] == own
    assert cohort["patients_public"] and cohort["slides"] == 3
    of_start = [own[0], "f" * 16, "unknown"]
    assert _describe_cohort(trainer, [of_start, []])["patients"] == [*own, "f" * 16, "unknown"]
    assert _describe_cohort(None, []) == {}
