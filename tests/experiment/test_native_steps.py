"""Levels in native steps: chosen where they can be, and the same files as in eager steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.stepping import choose
from lth_fast.prune import prune_by_score
from lth_fast.train import EagerStepper, NativeStepper, OptimizerRecipe, ParallelStepper


def test_a_fully_connected_network_takes_native_steps_and_any_other_has_a_reason(make_experiment, fully_connected):
    assert choose(make_experiment(model=fully_connected())).name == "native"
    choice = choose(make_experiment())
    assert choice.name == "eager"
    assert choice.refused["native"] == "the network has a Conv2d where a linear layer is expected"


def test_biases_that_are_pruned_are_a_reason(make_experiment, fully_connected):
    refused = choose(make_experiment(model=fully_connected(), prune_bias=True)).refused
    assert refused["native"] == "a ParametrizedMaskedLinear computes in Python"


def test_the_choice_leaves_the_model_as_it_was(make_experiment, fully_connected):
    experiment = make_experiment(model=fully_connected())
    choose(experiment)
    expected = fully_connected().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in experiment.model.state_dict().items())
    assert all(parameter.grad is None for parameter in experiment.model.parameters())


@pytest.mark.parametrize("plan", ["masked", "sparse"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_file_of_a_run_is_that_of_eager_steps(
    plan, optimizer, make_experiment, new_run, fully_connected, results
):
    experiment = make_experiment(
        model=fully_connected(), optimizer=OptimizerRecipe.named(optimizer, 0.01), plan=plan, rewind=3, keep=(5,)
    )
    runs = [new_run(), new_run()]
    for run, kind in zip(runs, (EagerStepper, NativeStepper), strict=True):
        run_replicates(dataclasses.replace(experiment, stepper=kind.name), run, Monitor())
    eager, native = map(results, runs)
    assert len(eager) > 10
    assert native == eager


def pruned_with_biases(net: nn.Module) -> None:
    prune_by_score(net, {"1.weight": 0.3, "1.bias": 0.3})


@pytest.mark.parametrize("kind", [NativeStepper, ParallelStepper])
def test_levels_whose_biases_a_function_has_pruned_take_eager_steps(
    kind, make_experiment, new_run, fully_connected, results
):
    experiment = make_experiment(
        model=fully_connected(),
        prune_net=pruned_with_biases,
        replicates=2,
        redraw=lambda seed: {name: 0.9 * value for name, value in fully_connected().state_dict().items()},
        plan="masked",
    )
    assert choose(dataclasses.replace(experiment, replicates=1)).name == "native"
    expected, run = new_run(), new_run()
    run_replicates(experiment, expected, Monitor())
    run_replicates(dataclasses.replace(experiment, stepper=kind.name), run, Monitor())
    assert not run.replicate(1).level(2).masks()["1.bias"].all()
    assert results(run) == results(expected)


@pytest.mark.parametrize("first", [EagerStepper, NativeStepper])
def test_a_level_goes_on_in_the_other_steps_from_its_checkpoint(
    first, make_experiment, new_run, monkeypatch, fully_connected, results
):
    experiment = make_experiment(model=fully_connected(), plan="sparse", checkpoint_seconds=0.0)
    whole, stopped = new_run(), new_run()
    run_replicates(dataclasses.replace(experiment, stepper=first.name), whole, Monitor())

    class StopsInLevelOne(Monitor):
        def stepped(self, iteration, losses):
            if stopped.replicate(0).level(0).complete and iteration >= 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_replicates(dataclasses.replace(experiment, stepper=first.name), stopped, StopsInLevelOne())
    other = NativeStepper if first is EagerStepper else EagerStepper
    run_replicates(dataclasses.replace(experiment, stepper=other.name), stopped, Monitor())
    assert results(stopped) == results(whole)
