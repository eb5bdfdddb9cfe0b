"""A level of 500 iterations with evaluation every 100, records included, against the same loop on stock pruning. Two
replicates side by side against one after the other.
"""

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.experiment.level import train_level
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.prune import prune_all
from lth_fast.record import create_run
from lth_fast.train import NativeStepper, OptimizerRecipe, ParallelStepper, Seeds, evaluate
from lth_fast.train.parallel_stepper import room_for_replicates

from .alternation import alternate
from .lenet import Setting, mnist, stepper

ITERATIONS, EVERY, BAR = 500, 100, 1.5


def experiment_of(setting: Setting, splits, **settings: Any) -> Experiment:
    return Experiment(
        model=setting.model,
        loaders=Loaders(*splits),
        criterion=nn.CrossEntropyLoss(),
        optimizer=OptimizerRecipe.named("adam", 1.2e-3),
        prune_net=partial(prune_all, rate=0.2),
        iterations=ITERATIONS,
        evaluate_every=EVERY,
        seeds=Seeds(0),
        **settings,
    )


def ours_level(setting: Setting, splits, folder: Path) -> None:
    """What the command line runs for a level, from masks and weights on the disk to its summary."""
    experiment = experiment_of(setting, splits, rounds=1, stepper=NativeStepper.name)
    replicate = create_run(folder, "lenet", "mnist").replicate(0)
    replicate.save_initial(setting.model.state_dict())
    dense, level = replicate.level(0), replicate.level(1)
    dense.save_weights("rewind", setting.model.state_dict())
    level.save_masks(setting.masks)
    train_level(experiment, replicate, level, Monitor())


def stock_level(setting: Setting, splits) -> None:
    """The same steps and evaluations on hooks and default Adam, with nothing recorded."""
    model = setting.stock()
    loop = stepper(model, splits.train, torch.optim.Adam)
    for _ in range(ITERATIONS // EVERY):
        loop.advance(EVERY)
        for part in (splits.validation, splits.test):
            evaluate(model, nn.CrossEntropyLoss(), part)


@pytest.mark.parametrize(
    "threads", ["one", pytest.param("all", marks=pytest.mark.long)], indirect=True
)  # in the default run on one: up to a minute less
@pytest.mark.parametrize("density", [0.5])
def test_level_is_one_and_a_half_times_faster_than_stock_pruning(benchmark, threads, density, tmp_path):
    splits, data_used = mnist()
    setting = Setting.at(density)
    numbers = itertools.count()
    result = alternate(
        benchmark,
        lambda: ours_level(setting, splits, tmp_path / str(next(numbers))),
        lambda: stock_level(setting, splits),
        rounds=5,
        warm_up=False,
    )
    benchmark.extra_info.update(
        threads=threads,
        density=density,
        data=data_used,
        bar=BAR,
        note=f"{1e3 * result.ours / ITERATIONS:.2f} ms per iteration with evaluation",
    )
    assert result.reaches(BAR), f"{result.ratio:.2f} times faster, expected {BAR}"


@pytest.mark.long
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_two_replicates_side_by_side_against_one_after_the_other(benchmark, threads, tmp_path):
    if room_for_replicates() < 2:
        pytest.skip("there is one core")
    splits, data_used = mnist()
    setting = Setting.at(1.0)
    redrawn = setting.model.state_dict()
    experiment = experiment_of(setting, splits, rounds=0, replicates=2, redraw=lambda seed: redrawn)
    numbers = itertools.count()

    def run(stepper: str) -> None:
        folder = create_run(tmp_path / str(next(numbers)), "lenet", "mnist")
        run_replicates(dataclasses.replace(experiment, stepper=stepper), folder, Monitor())

    result = alternate(
        benchmark, partial(run, ParallelStepper.name), partial(run, NativeStepper.name), rounds=5, warm_up=False
    )
    benchmark.extra_info.update(threads=threads, data=data_used, note="two cores against one")
    assert result.reaches(1.5), f"{result.ratio:.2f} times faster on two cores, expected 1.5"
