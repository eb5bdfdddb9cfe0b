from __future__ import annotations

import pytest

from lth_fast.train.schedule import StepSchedule


def test_without_warm_up_and_milestones_the_rate_stays():
    assert [StepSchedule()(iteration) for iteration in (0, 7, 10**6)] == [1.0, 1.0, 1.0]


def test_the_rate_rises_linearly_to_its_full_value_over_the_warm_up():
    schedule = StepSchedule(warmup=4)
    assert [schedule(iteration) for iteration in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_step_after_a_milestone_is_the_first_with_a_tenth_of_the_rate():
    schedule = StepSchedule(milestones=(3, 5))
    expected = [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [schedule(iteration) for iteration in range(7)] == pytest.approx(expected)


def test_milestones_inside_the_warm_up_act_on_the_rising_rate():
    assert StepSchedule(warmup=4, milestones=(2,))(2) == pytest.approx(0.075)
