import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.distillation.schedule import CosineSchedule, LossEarlyStopping
from g2l_plugin.errors import UserError


def make_optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4, weight_decay=0.05)


def run(optimizer, schedule, steps):
    values = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        values.append((group["lr"], group["weight_decay"]))
        optimizer.step()
        schedule.step()
    return values


def test_learning_rate_and_weight_decay_follow_the_same_cosine():
    optimizer = make_optimizer()
    values = run(optimizer, CosineSchedule(optimizer, T_max=100), 120)
    for step, (lr, weight_decay) in enumerate(values):
        factor = (1 + math.cos(math.pi * min(step / 100, 1))) / 2
        assert lr == pytest.approx(1e-4 * factor, abs=1e-12)
        assert weight_decay == pytest.approx(0.05 * factor, abs=1e-9)


def test_end_values_are_reached_and_held():
    optimizer = make_optimizer()
    schedule = CosineSchedule(optimizer, T_max=10, eta_min=1e-6, weight_decay_min=0.4)
    values = run(optimizer, schedule, 15)
    assert values[10] == values[-1] == pytest.approx((1e-6, 0.4))


def test_the_learning_rate_rises_in_its_share_of_the_steps():
    optimizer, plain = make_optimizer(), make_optimizer()
    values = run(optimizer, CosineSchedule(optimizer, T_max=100, warmup=0.1), 100)
    cosine = run(plain, CosineSchedule(plain, T_max=100), 100)
    for step, ((lr, weight_decay), (full, expected)) in enumerate(zip(values, cosine, strict=True)):
        assert lr == pytest.approx(full * min((step + 1) / 11, 1))
        assert weight_decay == pytest.approx(expected)
    with pytest.raises(UserError, match=r"warmup` is 50\. Expected 0 to 1"):
        CosineSchedule(make_optimizer(), T_max=100, warmup=50)


def test_a_resumed_schedule_goes_on_where_it_was():
    whole = make_optimizer()
    expected = run(whole, CosineSchedule(whole, T_max=20), 20)
    first = make_optimizer()
    schedule = CosineSchedule(first, T_max=20)
    values = run(first, schedule, 8)
    second = make_optimizer()
    resumed = CosineSchedule(second, T_max=20)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    torch.testing.assert_close(
        torch.tensor(values + run(second, resumed, 12)), torch.tensor(expected)
    )


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))
def test_a_schedule_resumed_with_other_steps_follows_the_cosine_of_these(n, before, after, warmup):
    first, second, whole = make_optimizer(), make_optimizer(), make_optimizer()
    schedule = CosineSchedule(first, T_max=before, warmup=warmup)
    run(first, schedule, n)
    resumed = CosineSchedule(second, T_max=after, warmup=warmup)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    expected = run(whole, CosineSchedule(whole, T_max=after, warmup=warmup), n + 10)[n:]
    torch.testing.assert_close(
        torch.tensor(run(second, resumed, 10), dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
    )
    assert resumed.state_dict()["T_max"] == after


def test_other_settings_of_a_resumed_schedule_are_refused_by_name():
    state = CosineSchedule(make_optimizer(), T_max=20).state_dict()
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01, weight_decay=0.05)
    with pytest.raises(UserError, match=r"`base_lrs` \[0\.0001\]; now it is \[0\.01\]"):
        CosineSchedule(other, T_max=20).load_state_dict(state)
    with pytest.raises(UserError, match=r"`warmup` 0\.0; now it is 0\.1"):
        CosineSchedule(make_optimizer(), T_max=20, warmup=0.1).load_state_dict(state)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_needs_steps(steps):
    with pytest.raises(UserError, match="MAX_STEPS"):
        CosineSchedule(make_optimizer(), T_max=steps)


def test_the_run_ends_at_the_eleventh_exceedance_of_a_full_window():
    stop = LossEarlyStopping(window=100, max_exceedances=10)
    # Rising losses are above their mean from the start, but count only once the window is full.
    ended = [stop.exceeds(float(step)) for step in range(111)]
    assert ended == [False] * 110 + [True]


@given(st.lists(st.floats(-10, 10), max_size=60), st.integers(1, 8), st.integers(0, 5))
def test_exceedances_are_counted_as_the_paper_says(losses, window, limit):
    stop = LossEarlyStopping(window, limit, consecutive=False)
    ended = [stop.exceeds(loss) for loss in losses]
    above = [
        step >= window and losses[step] > sum(losses[step - window : step]) / window
        for step in range(len(losses))
    ]
    assert ended == [sum(above[: step + 1]) > limit for step in range(len(losses))]


def test_consecutive_exceedances_start_anew_below_the_mean():
    losses = [1.0, 1.0, 2.0, 2.0, 0.0, 3.0, 3.0, 4.0, 5.0]
    every, consecutive = (LossEarlyStopping(2, 2, consecutive=c) for c in (False, True))
    assert [every.exceeds(loss) for loss in losses].index(True) == 5
    assert [consecutive.exceeds(loss) for loss in losses].index(True) == 7


def test_a_resumed_stop_goes_on_where_it_was():
    losses = [float(step % 7) for step in range(60)]
    whole, first, second = (LossEarlyStopping(10, 20, consecutive=False) for _ in range(3))
    expected = [whole.exceeds(loss) for loss in losses]
    ended = [first.exceeds(loss) for loss in losses[:25]]
    second.load_state_dict(first.state_dict())
    assert ended + [second.exceeds(loss) for loss in losses[25:]] == expected
    assert True in expected


@pytest.mark.parametrize(("limit", "stops"), [(2, True), (3, False)])
def test_a_run_that_was_ended_after_its_early_stop_stops_at_once(limit, stops):
    first, second = (LossEarlyStopping(2, limit, consecutive=True) for _ in range(2))
    for loss in (1.0, 1.0, 2.0, 3.0, 4.0):
        first.exceeds(loss)
    second.load_state_dict(first.state_dict())
    trainer = SimpleNamespace(should_stop=False, global_step=5)
    module = SimpleNamespace(run_state=SimpleNamespace(ending=""))
    second.on_train_start(trainer, module)
    assert trainer.should_stop is stops
    assert module.run_state.ending.startswith("early stop") is stops


@pytest.mark.parametrize(("window", "limit"), [(0, 10), (-1, 10), (100, -1)])
def test_an_early_stop_that_cannot_work_is_refused(window, limit):
    with pytest.raises(UserError, match="EARLY_STOP_WINDOW.*EARLY_STOP_EXCEEDANCES.*Expected"):
        LossEarlyStopping(window, limit)
