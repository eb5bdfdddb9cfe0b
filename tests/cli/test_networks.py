"""Networks beside LeNet, from the command line: on genuine data, and rewound in the middle of their schedule."""

from __future__ import annotations

import pytest
import torch

from lth_fast import data
from lth_fast.train import ResidentBatches, Seeds

SHORT = ("--iter", "20", "--rounds", "2", "--seed", "1", "--batch_size", "8", "--threads", "1")


def first(loader, count):
    """The first ``count`` images of a resident loader."""
    return data.ResidentLoader(
        loader.images[:count],
        loader.labels[:count],
        name=loader.name,
        classes=loader.classes,
        mean=loader.mean,
        std=loader.std,
        scale=loader.scale,
        batch_size=loader.batch_size,
    )


@pytest.fixture
def little_evaluation(monkeypatch):
    """Train on all of a data set and evaluate on 500 images: these networks would spend minutes on 15,000."""
    load = data.load

    def loaded(*arguments, **options):
        train, validation, test = load(*arguments, **options)
        return data.DataSplits(train, first(validation, 500), first(test, 500))

    monkeypatch.setattr(data, "load", loaded)


@pytest.mark.real_data
@pytest.mark.usefixtures("little_evaluation")
@pytest.mark.parametrize(
    "words",
    [
        ("lenet", "cifar10"),
        ("conv2", "mnist"),
        ("vgg11", "digits"),
        ("resnet20", "cifar10", "--augment"),
        ("torchvision:resnet18", "cifar10"),
    ],
    ids=" ".join,
)
def test_a_network_trains_for_twenty_iterations_and_is_pruned_twice(words, command, data_root):
    outcome = command(*words, *SHORT, "--data", str(data_root))
    assert outcome.code == 0, outcome.err
    densities = [outcome.level(number).summary()["density"] for number in range(3)]
    assert densities[0] == 1 > densities[1] > densities[2] > 0.5
    for number in range(3):
        log = outcome.level(number).log.read()
        assert log["iteration"][-1] == 20
        assert (log["train_loss"] == log["train_loss"]).all()
        weights, masks = outcome.level(number).weights("end"), outcome.level(number).masks()
        assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())


def test_a_rewound_resnet_goes_on_with_the_learning_rate_and_the_data_order_of_that_point(command, spied_steps):
    flags = ("--iter", "6", "--rewind", "3", "--rounds", "1", "--milestones", "2,5", "--batch_size", "16")
    outcome = command("resnet20", "digits", *flags, "--seed", "1", "--threads", "1")
    assert outcome.code == 0, outcome.err
    pruned = [step for step in outcome.steps if step.level == 1]
    assert [step.iteration for step in pruned] == [4, 5, 6]
    assert [step.rates[0] for step in pruned] == pytest.approx([0.01, 0.01, 0.001])
    seeds = Seeds(1)
    train = data.load("digits", train_batch_size=16, split_seed=seeds.stream("split")).train
    order = ResidentBatches(train, lambda epoch: seeds.stream("order", 0, 1, epoch), lambda epoch: 0)
    order.start(3)
    for step in pruned:
        assert torch.equal(step.labels, order.next()[1])


def test_a_deep_network_without_rewinding_is_warned_about_once(command):
    outcome = command("resnet20", "digits", "--iter", "1", "--rounds", "0", "--rewind", "0", "--threads", "1")
    warnings = [line for line in outcome.err.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "without rewinding" in warnings[0]
    assert "WARNING" not in command("lenet:8", "digits", "--iter", "1", "--rounds", "0").err
