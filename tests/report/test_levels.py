from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_fast.record import Run
from lth_fast.report.levels import Spread, collect

MakeRun = Callable[..., Run]
MakeSummary = Callable[..., dict[str, Any]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_a_spread_is_the_mean_and_the_sample_standard_deviation(values: list[float]) -> None:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(mean, abs=1e-6)
    assert spread.sd == pytest.approx(variance**0.5, rel=1e-6, abs=1e-6)
    assert spread.n == len(values)


def test_a_spread_leaves_out_missing_values_and_says_how_many_are_left() -> None:
    assert Spread.of([1.0, None, 3.0]) == Spread(2.0, 2.0**0.5, 2)
    assert Spread.of([None, 3.0]) == Spread(3.0, None, 1)
    assert Spread.of([None]) == Spread(None, None, 0)


def test_each_level_is_collected_over_its_replicates_in_percent(make_run: MakeRun, summary: MakeSummary) -> None:
    accuracies = [0.97, 0.98, 0.99]
    results = collect(make_run(*([summary(0), summary(1, test_accuracy=accuracy)] for accuracy in accuracies)))
    assert (results.replicates, results.complete, results.expected) == (3, 6, 6)
    level = results.levels[1]
    assert (level.level, level.replicates) == (1, 3)
    assert level.density.mean == pytest.approx(80)
    assert level.final_accuracy.mean == pytest.approx(98)
    assert level.final_accuracy.sd == pytest.approx(100 * statistics.stdev(accuracies))
    assert level.early_stop_accuracy.mean == pytest.approx(98)
    assert level.early_stop_iteration == Spread(4900, 0, 3)
    assert level.seconds.mean == 10
    assert level.iterations_per_second.mean == 50_000 / 8


def test_a_rate_needs_a_duration(make_run: MakeRun, summary: MakeSummary) -> None:
    (level,) = collect(make_run([summary(0, train_seconds=0.0)], [summary(0, train_seconds=None)])).levels
    assert level.iterations_per_second == Spread(None, None, 0)


def test_incomplete_levels_are_counted_and_left_out(make_run: MakeRun, summary: MakeSummary) -> None:
    results = collect(make_run([summary(0), summary(1), None], [summary(0), None]))
    assert [(level.level, level.replicates) for level in results.levels] == [(0, 2), (1, 1)]
    assert (results.replicates, results.complete, results.expected) == (2, 3, 6)


@pytest.mark.parametrize("replicates", [[], [[None]]], ids=["just begun", "first level training"])
def test_a_run_without_a_complete_level_is_refused(make_run: MakeRun, replicates: list[list[None]]) -> None:
    with pytest.raises(ValueError, match=rf"lenet_mnist_reinit has no complete level yet \({len(replicates)} begun\)"):
        collect(make_run(*replicates))
