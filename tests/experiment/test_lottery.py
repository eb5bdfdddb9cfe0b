"""The loop over the levels: masks, densities, and what a second call does not do again."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from torch.nn.utils import prune as stock

from lth_fast import models
from lth_fast.data import ResidentLoader
from lth_fast.experiment.experiment import Loaders
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.prune import prune_all
from lth_fast.train import Seeds

# Frankle and Carbin 2019, figures 3 and 4: percent of LeNet's weights left, by level.
LENET_DENSITIES = {3: "51.3", 7: "21.1", 9: "13.5", 12: "7.0", 15: "3.6", 18: "1.9", 26: "0.33"}


class Recording(Monitor):
    def __init__(self):
        self.begun = []

    def level_begins(self, level, first, iteration, last, density, per_epoch):
        self.begun.append((level, iteration))


def mnist_shaped_noise():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    return ResidentLoader(
        images, labels, name="noise", classes=10, mean=(0.5,), std=(0.3,), batch_size=60, shuffle=True
    )


def test_lenet_has_the_densities_of_the_paper_level_by_level(make_experiment, record):
    model = models.build("lenet", (1, 28, 28), generator=torch.Generator().manual_seed(1))
    experiment = make_experiment(
        model=model,
        loaders=Loaders(mnist_shaped_noise()),
        prune_net=partial(prune_all, rate=0.2),
        iterations=1,
        rounds=26,
    )
    summaries = run_replicate(experiment, record, Monitor())
    assert [summary["level"] for summary in summaries] == list(range(27))
    total = 266_200
    for level, expected in LENET_DENSITIES.items():
        digits = len(expected.partition(".")[2])
        assert f"{100 * summaries[level]['density']:.{digits}f}" == expected
    # Exactly: a fifth of every layer's survivors, a tenth of the output layer's.
    sizes = {"classifier.fc1.weight": 235_200, "classifier.fc2.weight": 30_000, "classifier.fc3.weight": 1_000}
    for level, summary in enumerate(summaries):
        masks = record.level(level).masks()
        assert {name: int(mask.sum()) for name, mask in masks.items()} == sizes
        assert summary["density"] == pytest.approx(sum(sizes.values()) / total)
        sizes = {
            name: left - round(left * (0.1 if name == "classifier.fc3.weight" else 0.2)) for name, left in sizes.items()
        }


@pytest.mark.parametrize("case", range(3))
def test_given_the_same_weights_the_masks_of_three_levels_are_those_of_stock(case, make_experiment, record):
    rate = [0.2, 0.37, 0.5][case]
    experiment = make_experiment(rounds=3, prune_net=partial(prune_all, rate=rate))
    run_replicate(experiment, record, Monitor())
    for number in (1, 2, 3):
        previous = record.level(number - 1)
        model = copy.deepcopy(experiment.model)
        model.load_state_dict(previous.weights("end"))
        layers = {"0.weight": model[0], "5.weight": model[5], "7.weight": model[7]}
        masks = record.level(number).masks()
        assert set(masks) == set(layers)
        for name, layer in layers.items():
            stock.custom_from_mask(layer, "weight", previous.masks()[name])
            stock.l1_unstructured(layer, "weight", amount=rate / 2 if name == "7.weight" else rate)
            assert torch.equal(layer.weight_mask.bool(), masks[name])


def test_random_pruning_draws_from_a_stream_of_its_replicate_and_level(make_experiment, new_run):
    seeds = []

    def prune_net(net):
        seeds.append(torch.initial_seed())
        return prune_all(net, 0.3)

    for replicate in (0, 1):
        experiment = make_experiment(prune_net=prune_net, replicate=replicate)
        run_replicate(experiment, new_run().replicate(replicate), Monitor())
    assert seeds == [Seeds(1).stream("mask", replicate, level) for replicate in (0, 1) for level in (1, 2)]


def test_masks_only_ever_lose_weights(make_experiment, record):
    run_replicate(make_experiment(rounds=4), record, Monitor())
    masks = [level.masks() for level in record.levels()]
    for before, after in itertools.pairwise(masks):
        for name in before:
            assert not (after[name] & ~before[name]).any()
            assert after[name].sum() < before[name].sum()


def test_complete_levels_are_not_trained_again(make_experiment, record, optimizer_steps):
    first = run_replicate(make_experiment(), record, Monitor())
    optimizer_steps.clear()
    monitor = Recording()
    assert run_replicate(make_experiment(), record, monitor) == first
    assert not optimizer_steps
    assert not monitor.begun


def test_more_rounds_go_on_from_the_last_level(make_experiment, record, new_run):
    run_replicate(make_experiment(rounds=1), record, Monitor())
    monitor = Recording()
    run_replicate(make_experiment(rounds=3), record, monitor)
    assert monitor.begun == [(2, 0), (3, 0)]
    at_once = new_run()
    run_replicate(make_experiment(rounds=3), at_once.replicate(0), Monitor())
    for one, other in zip(record.levels(), at_once.replicate(0).levels(), strict=True):
        ends = one.weights("end"), other.weights("end")
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_initial_weights_on_the_disk_count_not_those_of_a_rebuilt_model(make_experiment, record):
    initial = {name: value.clone() for name, value in make_experiment().model.state_dict().items()}
    run_replicate(make_experiment(rounds=0), record, Monitor())
    other = make_experiment().model
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    run_replicate(make_experiment(rounds=1, model=other), record, Monitor())
    for kept in (record.initial(), record.level(1).weights("rewind")):
        assert all(torch.equal(kept[name], initial[name]) for name in initial)


def test_the_experiment_it_is_given_is_left_as_it_was(make_experiment, record):
    experiment = make_experiment()
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    run_replicate(experiment, record, Monitor())
    assert [type(module) for module in experiment.model] == [type(module) for module in make_experiment().model]
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())


def test_a_missing_file_of_a_complete_level_is_named(make_experiment, record):
    run_replicate(make_experiment(rounds=1), record, Monitor())
    record.level(1).weights_file("end").unlink()
    with pytest.raises(FileNotFoundError, match="replicate_0/1: a file of this complete level is missing"):
        run_replicate(make_experiment(rounds=2), record, Monitor())
