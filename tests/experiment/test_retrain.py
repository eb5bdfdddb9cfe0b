"""What a pruned level goes on from: rewound weights, a rewound learning rate alone, or neither (2003.02389)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.experiment.config import Config
from lth_fast.experiment.iterative import iterative_pruning
from lth_fast.experiment.lottery import run_replicate, run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.prune import prune_all
from lth_fast.record import create_run
from lth_fast.train import OptimizerRecipe, ReplicateStepper
from lth_fast.train.schedule import StepSchedule

SCHEDULE = StepSchedule(warmup=2, milestones=(4, 8))


@pytest.mark.parametrize(
    ("retrain", "factors"),
    [
        ("weights", [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ("learn_rate", [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ("finetune", [0.01] * 7),
    ],
)
def test_the_learning_rate_is_that_of_the_steps_from_the_rewind_point_on_or_of_the_last_one(
    retrain, factors, make_experiment, record, optimizer_steps
):
    experiment = make_experiment(
        rewind=5, retrain=retrain, schedule=SCHEDULE, optimizer=OptimizerRecipe(torch.optim.SGD, {"lr": 2.0})
    )
    run_replicate(experiment, record, Monitor())
    rates = [step.rates[0] for step in optimizer_steps]
    assert rates[:12] == [2.0 * SCHEDULE(iteration) for iteration in range(12)]
    assert rates[12:] == pytest.approx([2.0 * factor for factor in factors] * 2)


def trained_by_hand(model, inputs, labels, masks, rates):
    """Plain gradient descent under ``masks``, in the order of the data as it is."""
    names = dict(model.named_parameters())
    for step, rate in enumerate(rates):
        with torch.no_grad():
            for name, mask in masks.items():
                names[name].mul_(mask)
        rows = slice(4 * step % 12, 4 * step % 12 + 4)
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.sub_(rate * parameter.grad * masks.get(name, 1))


@pytest.mark.parametrize("retrain", ["learn_rate", "finetune"])
def test_a_search_is_that_of_a_loop_by_hand_which_prunes_and_trains_on(retrain, tmp_path):
    generator = torch.Generator().manual_seed(3)
    inputs, labels = torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)
    batches = [(inputs[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    result = iterative_pruning(
        model,
        batches,
        9,
        2,
        lambda net: prune_all(net, 0.25),
        optim="sgd",
        learn_rate=0.5,
        criterion=nn.CrossEntropyLoss(),
        rewind=3,  # a whole pass over the data, so that every level begins with its first batch
        retrain=retrain,
        milestones=(6,),
        save=tmp_path,
        quiet=True,
    )
    masks: dict[str, torch.Tensor] = {}
    dense = [0.5] * 6 + [0.05] * 3
    trained_by_hand(model, inputs, labels, masks, dense)
    for _ in range(2):
        for name, rate in (("0.weight", 0.25), ("2.weight", 0.125)):  # half the rate in the output layer
            weight = model.get_parameter(name).detach()
            survivors = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
            least = round(rate * int(survivors.sum()))
            ranked = torch.where(survivors, weight.abs(), torch.inf).flatten().argsort(stable=True)
            mask = survivors.clone().flatten()
            mask[ranked[:least]] = False
            masks[name] = mask.view_as(weight)
        trained_by_hand(model, inputs, labels, masks, dense[3:] if retrain == "learn_rate" else [0.05] * 6)
    for name, mask in masks.items():
        assert torch.equal(result.model.state_dict()[name] != 0, mask)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value * masks.get(name, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("retrain", ["learn_rate", "finetune"])
def test_replicates_at_once_go_on_as_they_do_alone(retrain, make_experiment, new_run):
    def network(seed):
        return models.build("lenet:12", (1, 6, 6), classes=3, generator=torch.Generator().manual_seed(seed))

    experiment = make_experiment(
        model=network(0),
        replicates=2,
        redraw=lambda seed: network(seed).state_dict(),
        rewind=5,
        retrain=retrain,
        schedule=SCHEDULE,
        optimizer=OptimizerRecipe(torch.optim.SGD, {"lr": 0.5}),
    )
    together, singly = new_run(), new_run()
    run_replicates(replace(experiment, stepper=ReplicateStepper.name), together, Monitor())
    run_replicates(experiment, singly, Monitor())
    for one, other in zip(together.replicates(), singly.replicates(), strict=True):
        for number in (1, 2):
            start, before = one.level(number).weights("rewind"), one.level(number - 1).weights("end")
            assert all(torch.equal(start[name], before[name]) for name in before)
            for name, value in one.level(number).weights("end").items():
                torch.testing.assert_close(value, other.level(number).weights("end")[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
def test_controls_are_those_of_rewound_weights(branch):
    with pytest.raises(ValueError, match=f"^--retrain: expected weights with --branch {branch}, got 'finetune'$"):
        Config.resolve("lenet", "digits", {"branch": branch, "retrain": "finetune"})


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
def test_controls_of_ones_own_model_are_too(branch, tmp_path):
    with pytest.raises(ValueError, match=f"^retrain: expected 'weights' with branch='{branch}', got 'learn_rate'$"):
        iterative_pruning(
            nn.Linear(2, 2), [], 3, 1, prune_all, branch=branch, ticket=create_run(tmp_path, "a", "b").path, retrain="l"
        )
