"""Replicates side by side on the CPU leave the files that they leave one after the other."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lth_fast.experiment import lottery, stepping
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import LogLines, Monitor
from lth_fast.experiment.stepping import choose
from lth_fast.prune import prune_by_score
from lth_fast.record import load_run
from lth_fast.train import NativeStepper, ParallelStepper

LEVELS = 3


@pytest.fixture
def redraw(fully_connected):
    return lambda seed: fully_connected(seed % 1000).state_dict()


@pytest.fixture
def experiment(make_experiment, fully_connected, redraw):
    """Three replicates with checkpoints at every pause."""
    return make_experiment(
        model=fully_connected(), replicates=3, redraw=redraw, plan="sparse", checkpoint_seconds=0.0, rewind=2
    )


@pytest.fixture(params=[2, 3, 8])
def room(request, monkeypatch):
    """Cores for so many of them."""
    for module in (lottery, stepping):
        monkeypatch.setattr(module, "room_for_replicates", lambda: request.param)
    return request.param


@pytest.fixture
def one_by_one(results):
    """Runs replicates one after the other and returns their files."""

    def of(experiment, run):
        run_replicates(dataclasses.replace(experiment, stepper=NativeStepper.name), run, Monitor())
        return results(run)

    return of


def in_parallel(experiment, run, monitor=None):
    return run_replicates(dataclasses.replace(experiment, stepper=ParallelStepper.name), run, monitor or Monitor())


@pytest.mark.usefixtures("room")
def test_files_and_summaries_are_those_of_one_after_the_other(experiment, new_run, one_by_one, results):
    expected, run = one_by_one(experiment, new_run()), new_run()
    summaries = in_parallel(experiment, run)
    assert results(run) == expected
    assert [(summary["replicate"], summary["level"]) for summary in summaries] == [
        (replicate, level) for replicate in range(3) for level in range(LEVELS)
    ]
    weights = [load_run(run.path).weights(0, "end", replicate=number)["1.weight"] for number in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_optimizer": True},
        {"retrain": "finetune"},
        {"plan": "masked"},
        {"prune_net": partial(prune_by_score, rates=0.3, score="random")},
    ],
    ids=["kept optimizer", "finetune", "masked", "random pruning"],
)
def test_settings_that_carry_something_on_have_the_same_files_too(
    changes, experiment, new_run, monkeypatch, one_by_one, results
):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    changed, run = dataclasses.replace(experiment, **changes), new_run()
    expected = one_by_one(changed, new_run())
    in_parallel(changed, run)
    assert results(run) == expected


def test_data_that_draws_random_numbers_is_measured_one_replicate_after_the_other(
    experiment, new_run, monkeypatch, one_by_one, results
):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 3)
    loaders = experiment.loaders
    shuffled = DataLoader(loaders.validation.dataset, batch_size=7, shuffle=True)
    changed, run = dataclasses.replace(experiment, loaders=loaders._replace(validation=shuffled)), new_run()
    expected = one_by_one(changed, new_run())
    in_parallel(changed, run)
    assert results(run) == expected


class Stops(Monitor):
    """Interrupts at the n-th time that anything is said."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def stepped(self, iteration, losses):
        self._count()

    def epoch_ends(self, iteration, validation):
        self._count()

    def level_complete(self, summary):
        self._count()


@pytest.mark.parametrize("moment", [1, 2, 4, 7, 11, 14, 20])
def test_a_run_that_was_stopped_goes_on_to_the_same_files(
    moment, experiment, new_run, monkeypatch, one_by_one, results
):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    expected, run = one_by_one(experiment, new_run()), new_run()
    with pytest.raises(KeyboardInterrupt):
        in_parallel(experiment, run, Stops(moment))
    in_parallel(experiment, run)
    assert results(run) == expected


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("to_the_start", [False, True])
def test_a_replicate_whose_checkpoint_is_older_catches_up(
    behind, to_the_start, experiment, new_run, monkeypatch, one_by_one, results
):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    expected, run = one_by_one(experiment, new_run()), new_run()

    class StopsLate(Monitor):
        def stepped(self, iteration, losses):
            file = run.replicate(behind).level(1).path / "checkpoint.pt"
            if file.exists() and not older:
                older.append(file.read_bytes())
            if run.replicate(0).level(0).complete and iteration >= 11:
                raise KeyboardInterrupt

    older: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        in_parallel(experiment, run, StopsLate())
    level = run.replicate(behind).level(1)
    assert older and (level.path / "checkpoint.pt").read_bytes() != older[0]
    if to_the_start:
        level.remove_checkpoint()
    else:
        (level.path / "checkpoint.pt").write_bytes(older[0])
    in_parallel(experiment, run)
    assert results(run) == expected


def test_one_goes_on_where_the_other_stopped(experiment, new_run, monkeypatch, one_by_one):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    expected, run = one_by_one(experiment, new_run()), new_run()
    with pytest.raises(KeyboardInterrupt):
        in_parallel(experiment, run, Stops(9))
    assert one_by_one(experiment, run) == expected


class Begins(Monitor):
    """Notes what is said of replicates."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int, int]] = []

    def replicate_begins(self, number, replicates, at_once=1):
        self.said.append((number, replicates, at_once))


def test_replicates_that_are_complete_take_no_place_beside_others(
    experiment, new_run, monkeypatch, one_by_one, results
):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    expected, run = one_by_one(experiment, new_run()), new_run()

    class StopsInTheSecond(Monitor):
        def stepped(self, iteration, losses):
            if run.replicate(1).level(0).complete:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_replicates(dataclasses.replace(experiment, stepper=NativeStepper.name), run, StopsInTheSecond())
    monitor = Begins()
    summaries = in_parallel(experiment, run, monitor)
    assert monitor.said == [(1, 3, 2)]
    assert [summary["replicate"] for summary in summaries] == [0] * LEVELS + [1] * LEVELS + [2] * LEVELS
    assert results(run) == expected


def test_those_side_by_side_are_announced_together(experiment, new_run, monkeypatch, capsys):
    monkeypatch.setattr(lottery, "room_for_replicates", lambda: 2)
    in_parallel(experiment, new_run(), monitor := Begins())
    assert monitor.said == [(0, 3, 2), (2, 3, 1)]
    for said in monitor.said:
        LogLines(sys.stdout).replicate_begins(*said)
    assert capsys.readouterr().out.splitlines() == [
        "replicate_0 (1 of 3), 1 more beside it; what follows is of replicate_0",
        "replicate_2 (3 of 3)",
    ]


# ---- when it is chosen ----


@pytest.mark.usefixtures("room")
def test_several_replicates_of_a_fully_connected_network_are_trained_side_by_side(experiment):
    choice = choose(experiment)
    assert choice.name == "native in parallel"
    assert choice.refused.keys() == {"replicates at once", "CUDA graph"}


def test_one_core_is_a_reason(experiment, monkeypatch):
    monkeypatch.setattr(stepping, "room_for_replicates", lambda: 1)
    choice = choose(experiment)
    assert choice.name == "native"
    assert choice.refused["native in parallel"] == "there are not cores for two replicates of 1 threads"


def test_networks_that_take_eager_steps_are_trained_one_after_the_other(make_experiment, redraw):
    choice = choose(make_experiment(replicates=2, redraw=redraw))
    assert choice.name == "eager"
    assert choice.refused["native in parallel"] == choice.refused["native"]
