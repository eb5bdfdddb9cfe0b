"""Replicates whose levels advance together leave the records of replicates that ran one after the other."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lth_fast import models
from lth_fast.experiment import level as level_module
from lth_fast.experiment.experiment import Loaders
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.stepping import choose, stacked_refusal
from lth_fast.prune import prune_all
from lth_fast.record import load_run
from lth_fast.train import OptimizerRecipe, ReplicateStepper
from lth_fast.train.schedule import StepSchedule

REPLICATES = 3


def network(seed):
    return models.build("lenet:12", (1, 6, 6), classes=3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def experiment(make_experiment):
    """Seven batches per epoch, 24 iterations, rewound to 5: two pruned levels of three replicates."""
    return make_experiment(
        model=network(0),
        replicates=REPLICATES,
        redraw=lambda seed: network(seed).state_dict(),
        iterations=24,
        rewind=5,
        keep=(0, 7),
        schedule=StepSchedule(warmup=4, milestones=(20,)),
    )


def at_once(experiment):
    return replace(experiment, stepper=ReplicateStepper.name)


def without_times(summary):
    return {key: value for key, value in summary.items() if "seconds" not in key}


def test_the_records_are_those_of_single_runs_to_rounding(experiment, new_run):
    together, singly = new_run(), new_run()
    summaries = run_replicates(at_once(experiment), together, Monitor())
    expected = run_replicates(experiment, singly, Monitor())
    assert [(row["replicate"], row["level"]) for row in summaries] == [(r, n) for r in range(3) for n in range(3)]
    files = [{str(path.relative_to(run.path)) for path in run.path.rglob("*")} for run in (together, singly)]
    assert files[0] == files[1]
    for row, other in zip(summaries, expected, strict=True):
        assert without_times(row).keys() == without_times(other).keys()
        for key, value in without_times(other).items():
            assert row[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
    for replicate in range(REPLICATES):
        for number in range(3):
            one, other = (run.replicate(replicate).level(number) for run in (together, singly))
            for column, values in one.log.read().items():
                assert values == pytest.approx(other.log.read()[column], rel=1e-4, nan_ok=True), column
            masks = other.masks()
            for name, mask in one.masks().items():
                assert torch.equal(mask, masks[name])
            for kind in ("rewind", "early_stop", "end"):
                for name, value in one.weights(kind).items():
                    torch.testing.assert_close(value, other.weights(kind)[name], rtol=1e-3, atol=1e-5)


def test_pruned_levels_start_from_the_masked_weights_of_the_rewind_point(experiment, new_run):
    run = new_run()
    run_replicates(at_once(experiment), run, Monitor())
    for replicate in run.replicates():
        rewind = replicate.level(0).weights("rewind")
        for number in (1, 2):
            level = replicate.level(number)
            assert all(torch.equal(value, rewind[name]) for name, value in level.weights("rewind").items())
            for name, mask in level.masks().items():
                assert not level.weights("end")[name][~mask].any()
            assert level.summary()["first_iteration"] == 6
        assert replicate.level(0).kept(7) is not None


def test_without_validation_and_test_sets_there_is_no_early_stop(experiment, new_run):
    bare = replace(experiment, loaders=Loaders(experiment.loaders.train), rounds=1)
    summaries = run_replicates(at_once(bare), new_run(), Monitor())
    assert len(summaries) == 2 * REPLICATES
    for row in summaries:
        assert [row[key] for key in ("early_stop_iteration", "valid_loss", "test_loss", "test_accuracy")] == [None] * 4


def test_every_replicate_is_pruned_by_the_function_made_for_its_own_initial_weights(experiment, new_run):
    compared_with = []

    def prune_net_of(initial):
        def prune(net):
            compared_with.append(initial.state_dict())
            return prune_all(net, 0.3)

        return prune

    run = new_run()
    own = replace(experiment, prune_net=prune_net_of(experiment.model), prune_net_of=prune_net_of, rounds=1)
    run_replicates(at_once(own), run, Monitor())
    for replicate, state in zip(run.replicates(), compared_with, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in replicate.initial().items())


def test_each_level_is_reported_complete_once(experiment, new_run):
    complete = []

    class Listening(Monitor):
        def level_complete(self, summary):
            complete.append(summary["level"])

    run_replicates(at_once(experiment), new_run(), Listening())
    assert complete == [0, 1, 2]


class Stopping(Monitor):
    def __init__(self, steps):
        self.left = steps

    def stepped(self, iteration, losses):
        self.left -= len(losses)
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [1, 10, 30, 55])
def test_a_stopped_run_begins_the_level_anew_and_ends_with_the_same_bits(steps, experiment, new_run, bits, monkeypatch):
    monkeypatch.setattr(level_module, "CHUNK_SECONDS", 0.0)
    reference, run = new_run(), new_run()
    run_replicates(at_once(experiment), reference, Monitor())
    with pytest.raises(KeyboardInterrupt):
        run_replicates(at_once(replace(experiment, checkpoint_seconds=0.0)), run, Stopping(steps))
    assert not list(run.path.rglob("checkpoint.pt"))
    run_replicates(at_once(experiment), run, Monitor())
    assert bits(run) == bits(reference)


def test_a_replicate_that_completed_the_level_is_left_as_it_is(experiment, new_run):
    run = new_run()
    run_replicates(at_once(experiment), run, Monitor())
    for replicate in (0, 2):
        run.replicate(replicate).level(2).path.joinpath("summary.json").unlink()
    kept = run.replicate(1).level(2).weights_file("end")
    before, inode = kept.read_bytes(), kept.stat().st_ino
    expected = load_run(run.path).iterations(2, replicate=2)["train_loss"]
    assert len(run_replicates(at_once(experiment), run, Monitor())) == 9
    assert (kept.read_bytes(), kept.stat().st_ino) == (before, inode)
    assert load_run(run.path).iterations(2, replicate=2)["train_loss"] == pytest.approx(expected, rel=1e-4)


# ---- when it is chosen ----


def test_one_replicate_does_not_ask_for_it(make_experiment):
    choice = choose(make_experiment())
    assert choice.name == "eager"
    assert choice.refused.keys() == {"CUDA graph", "native"}


def test_on_the_cpu_they_do_not_share_their_steps_for_a_reason(experiment):
    assert choose(experiment).refused["replicates at once"] == "the training is on the CPU"


def test_nothing_else_stands_in_the_way_of_a_small_fully_connected_network(experiment):
    before = copy.deepcopy(experiment.model.state_dict())
    assert stacked_refusal(experiment) is None
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())


def with_a_data_loader(experiment):
    loaders = experiment.loaders
    return {"loaders": loaders._replace(train=DataLoader(loaders.train.dataset, batch_size=10))}


def with_shuffled_validation(experiment):
    loaders = experiment.loaders
    return {"loaders": Loaders(loaders.train, loaders.train, loaders.test)}


def with_augmented_test_images(experiment):
    loaders = experiment.loaders
    test = copy.copy(loaders.test)
    test.augment = True
    return {"loaders": Loaders(loaders.train, loaders.validation, test)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (with_a_data_loader, "the data does not all lie on the device"),
        (with_shuffled_validation, "validation or test data come in a random order"),
        (with_augmented_test_images, "validation or test data come in a random order"),
        ({"optimizer": OptimizerRecipe.named("nadam", 0.01)}, "NAdam does not treat every weight by itself"),
        ({"precision": "bf16"}, "the precision is bf16"),
        ({"prune_bias": True}, "biases are pruned"),
        ({"keep_optimizer": True}, "the optimizer's state goes on from level to level"),
        ({"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)}, "the loss is not plain cross-entropy"),
        ({"model": nn.Sequential(nn.Conv2d(1, 2, 3))}, "0 is a Conv2d; it takes Flatten, Linear and ReLU layers"),
    ],
)
def test_what_stands_in_the_way_is_said(experiment, changes, reason):
    changed = replace(experiment, **(changes(experiment) if callable(changes) else changes))
    assert stacked_refusal(changed) == reason


@pytest.mark.gpu
def test_on_a_gpu_it_is_chosen_and_gives_the_records_of_single_runs(experiment, make_experiment, new_run):
    device = torch.device("cuda")
    loaders = Loaders(*(loader.to(device) for loader in experiment.loaders))
    adam = OptimizerRecipe.named("adam", 0.01, device)
    there = replace(experiment, device=device, loaders=loaders, optimizer=adam, prune_net=partial(prune_all, rate=0.3))
    choice = choose(there)
    assert (choice.name, choice.refused) == ("replicates at once", {})
    together, singly = new_run(), new_run()
    summaries = run_replicates(replace(there, stepper=choice.name), together, Monitor())
    expected = run_replicates(there, singly, Monitor())
    for row, other in zip(summaries, expected, strict=True):
        assert row["density"] == other["density"]
    for replicate in range(REPLICATES):
        losses = [load_run(run.path).iterations(0, replicate)["train_loss"] for run in (together, singly)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.gpu
def test_on_a_gpu_a_single_replicate_replays_graphs_and_resumes(make_experiment, new_run, monkeypatch):
    monkeypatch.setattr(level_module, "CHUNK_SECONDS", 0.0)
    device = torch.device("cuda")
    adam = OptimizerRecipe.named("adam", 0.01, device)
    here = make_experiment(checkpoint_seconds=0.0, rewind=3, iterations=20, optimizer=adam)
    there = replace(here, device=device, loaders=Loaders(*(loader.to(device) for loader in here.loaders)))
    choice = choose(there)
    assert (choice.name, choice.refused) == ("CUDA graph", {})
    there = replace(there, stepper=choice.name)
    reference, run = new_run(), new_run()
    run_replicates(there, reference, Monitor())
    with pytest.raises(KeyboardInterrupt):
        run_replicates(there, run, Stopping(27))
    run_replicates(there, run, Monitor())
    for number in (0, 1, 2):
        losses = [load_run(one.path).iterations(number)["train_loss"] for one in (run, reference)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
