"""What one level promises: where it starts, what it sees, what stays zero, what it writes down."""

from __future__ import annotations

import csv
import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lth_fast.experiment.experiment import RETRAINS, Loaders
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.nn import set_masks
from lth_fast.ops import sparse_pattern
from lth_fast.ops.sparse_linear import to_dense
from lth_fast.record import COLUMNS
from lth_fast.train import OptimizerRecipe, ResidentBatches, Seeds, evaluate
from lth_fast.train.precision import forward_precision
from lth_fast.train.schedule import StepSchedule

OPTIMIZERS = {
    "adam": OptimizerRecipe.named("adam", 0.01),
    "sgd": OptimizerRecipe(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
}


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def steps_by_level(steps):
    """The steps in order, a list per level: every level has an optimizer of its own."""
    levels, optimizers = [], []
    for step in steps:
        if not optimizers or step.optimizer is not optimizers[-1]:
            optimizers.append(step.optimizer)
            levels.append([])
        levels[-1].append(step)
    return levels


def in_weight_shape(value, mask):
    """What a sparse layer keeps of its survivors, with zeros at the other places; anything else as it is."""
    survivors = int(mask.sum())
    if value.dim() == 1 and mask.dim() > 1:
        assert value.numel() == survivors
        if mask.dim() == 2:
            return to_dense(value, sparse_pattern(mask))
        return torch.zeros(mask.shape).masked_scatter(mask, value)
    return value


@pytest.mark.parametrize("plan", ["masked", "sparse"])
@pytest.mark.parametrize("rewind", [0, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_their_momentum_and_moments_are_zero_after_every_step(
    name, rewind, plan, make_experiment, record, optimizer_steps
):
    experiment = make_experiment(optimizer=OPTIMIZERS[name], rewind=rewind, plan=plan)
    run_replicate(experiment, record, Monitor())
    levels = steps_by_level(optimizer_steps)
    assert [len(steps) for steps in levels] == [12, 12 - rewind, 12 - rewind]
    looked_at = 0
    for number, steps in enumerate(levels):
        masks = record.level(number).masks()
        for step in steps:
            for parameter, weight, state in zip(names_of(experiment.model), step.after, step.state, strict=True):
                if parameter in masks:
                    pruned = ~masks[parameter]
                    kept_for_it = [value for value in state.values() if value.shape == weight.shape]
                    assert kept_for_it
                    for value in (weight, *kept_for_it):
                        value = in_weight_shape(value, masks[parameter])
                        assert torch.equal(value[pruned], torch.zeros(int(pruned.sum())))
                        looked_at += int(pruned.sum())
    assert looked_at > 1000


@pytest.mark.parametrize("retrain", RETRAINS)
@pytest.mark.parametrize("plan", ["masked", "sparse"])
@pytest.mark.parametrize("rewind", [0, 1, 5])
def test_a_level_starts_from_the_rewind_weights_its_mask_keeps_and_zeros_with_a_fresh_optimizer(
    rewind, plan, retrain, make_experiment, record, optimizer_steps
):
    experiment = make_experiment(rewind=rewind, plan=plan, retrain=retrain)
    run_replicate(experiment, record, Monitor())
    levels = steps_by_level(optimizer_steps)
    initial = record.initial()
    for number, steps in enumerate(levels):
        assert steps[0].fresh
        assert not any(step.fresh for step in steps[1:])
        masks, rewound = record.level(number).masks(), record.level(number).weights("rewind")
        if number == 0:
            rewound = initial
        for parameter, found in zip(names_of(experiment.model), steps[0].before, strict=True):
            expected = rewound[parameter].clone()
            if parameter in masks:
                expected[~masks[parameter]] = 0.0
                found = in_weight_shape(found, masks[parameter])
            assert torch.equal(found.view(torch.int32), expected.view(torch.int32)), (
                parameter
            )  # the bits, signs of 0 too


@pytest.mark.parametrize("rewind", [1, 4, 5, 7, 11])
def test_rewind_weights_are_the_state_after_exactly_that_many_updates(
    rewind, make_experiment, record, new_run, optimizer_steps
):
    experiment = make_experiment(rewind=rewind, rounds=1)
    run_replicate(experiment, record, Monitor())
    saved = record.level(0).weights("rewind")
    for parameter, after in zip(names_of(experiment.model), optimizer_steps[rewind - 1].after, strict=True):
        assert torch.equal(saved[parameter], after)
    # Running statistics too: those of a run that ends there.
    shorter = new_run().replicate(0)
    run_replicate(make_experiment(iterations=rewind, rounds=0), shorter, Monitor())
    end = shorter.level(0).weights("end")
    assert list(saved) == list(end)
    assert all(torch.equal(saved[name], end[name]) for name in end)


def test_without_rewinding_the_rewind_weights_are_the_initial_ones(make_experiment, record):
    run_replicate(make_experiment(), record, Monitor())
    initial = record.initial()
    for level in record.levels():
        rewound = level.weights("rewind")
        assert all(torch.equal(rewound[name], initial[name]) for name in initial)


class Listening:
    """A loader that writes down the indices of every training batch."""

    def __init__(self, loader):
        self.loader = loader
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def batch(self, indices, augment_seed=None):
        self.seen.append(indices.tolist())
        return self.loader.batch(indices, augment_seed)


@pytest.mark.parametrize("rewind", [0, 3, 7, 9])
def test_a_level_sees_its_own_seeded_order_from_the_rewind_point_on(rewind, make_experiment, record):
    experiment = make_experiment(rewind=rewind, iterations=16)
    listening = Listening(experiment.loaders.train)
    run_replicate(
        make_experiment(rewind=rewind, iterations=16, loaders=experiment.loaders._replace(train=listening)),
        record,
        Monitor(),
    )
    expected = []
    for level in range(3):
        whole = Listening(experiment.loaders.train)
        batches = ResidentBatches(
            whole, lambda epoch, level=level: Seeds(1).stream("order", 0, level, epoch), lambda epoch: 0
        )
        for _ in range(16):
            batches.next()
        expected.append(whole.seen[rewind if level else 0 :])
    assert expected[1] != expected[2]
    assert listening.seen == expected[0] + expected[1] + expected[2]


def test_another_replicate_has_another_order(make_experiment, new_run):
    seen = []
    for replicate in (0, 1):
        listening = Listening(make_experiment().loaders.train)
        experiment = make_experiment(loaders=Loaders(listening), rounds=0, replicate=replicate)
        run_replicate(experiment, new_run().replicate(replicate), Monitor())
        seen.append(listening.seen)
    assert seen[0] != seen[1]


def test_the_learning_rate_of_a_rewound_level_is_the_one_of_the_dense_network(make_experiment, record, optimizer_steps):
    run_replicate(make_experiment(rewind=5, optimizer=OPTIMIZERS["sgd"]), record, Monitor())
    assert {rate for step in optimizer_steps for rate in step.rates} == {0.05}


@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_level_follows_the_schedule_from_the_same_rate(
    keep_optimizer, optimizer, make_experiment, record, optimizer_steps
):
    schedule = StepSchedule(warmup=2, milestones=(4, 8))
    experiment = make_experiment(keep_optimizer=keep_optimizer, optimizer=OPTIMIZERS[optimizer], schedule=schedule)
    run_replicate(experiment, record, Monitor())
    rate = OPTIMIZERS[optimizer].settings["lr"]
    expected = [rate * schedule(iteration) for iteration in range(12)]
    for level in steps_by_level(optimizer_steps):
        assert [step.rates[0] for step in level] == expected


def train_losses(record):
    return [level.log.read()["train_loss"].tolist() for level in record.levels()]


def test_dropout_follows_the_seed_whatever_the_global_generator_holds(make_experiment, new_run):
    losses = []
    for seed, state in ((1, 1), (1, 2), (2, 1)):
        record = new_run().replicate(0)
        experiment = make_experiment(seeds=Seeds(seed, order_seed=5))
        torch.manual_seed(state)
        run_replicate(experiment, record, Monitor())
        losses.append(train_losses(record))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_every_level_of_every_replicate_draws_noise_of_its_own(make_experiment, new_run):
    seeds = []

    class Listening(Monitor):
        def level_begins(self, *_):
            seeds.append(torch.initial_seed())

    for replicate in (0, 1):
        run_replicate(make_experiment(replicate=replicate), new_run().replicate(replicate), Listening())
    assert seeds == [Seeds(1).stream("noise", replicate, level) for replicate in (0, 1) for level in range(3)]


def test_every_batch_of_every_epoch_level_and_replicate_is_augmented_by_draws_of_its_own(make_experiment, new_run):
    class Augmented(Listening):
        augment = True

        def batch(self, indices, augment_seed=None):
            self.seen.append(augment_seed)
            return self.loader.batch(indices)

    seeds = []
    for replicate in (0, 1):
        loader = Augmented(make_experiment().loaders.train)
        run_replicate(
            make_experiment(loaders=Loaders(loader), rounds=1, rewind=2, replicate=replicate),
            new_run().replicate(replicate),
            Monitor(),
        )
        for level, first in ((0, 0), (1, 2)):
            stream = [Seeds(1).stream("noise", replicate, level, epoch + 1) >> 1 for epoch in (0, 1)]
            seeds += [stream[step // 7] + step % 7 for step in range(first, 12)]
        assert loader.seen == seeds[-22:]
    assert len(set(seeds)) == 2 * (12 + 10)


def test_a_loader_that_draws_a_part_of_the_validation_set_draws_the_same_at_every_look(make_experiment, record):
    loaders = make_experiment().loaders
    validation = loaders.validation.dataset
    sampler = RandomSampler(validation, num_samples=7)
    experiment = make_experiment(
        model=nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)),
        loaders=loaders._replace(validation=DataLoader(validation, batch_size=7, sampler=sampler)),
        optimizer=OptimizerRecipe.named("sgd", 1e-30),  # trains nothing
        evaluate_every=1,
        rounds=0,
    )
    run_replicate(experiment, record, Monitor())
    measured = record.level(0).log.read()["valid_loss"].tolist()
    assert len(measured) == 12
    assert len(set(measured)) == 1


@pytest.mark.parametrize("shuffled", [False, True])
def test_how_often_one_looks_changes_no_bit_of_the_training(shuffled, make_experiment, new_run):
    """Neither evaluations nor what a DataLoader draws for them, in a network with dropout."""
    losses, ends = [], []
    for every in (1, 4, -1, 100):
        loaders = make_experiment().loaders
        validation = DataLoader(loaders.validation.dataset, batch_size=7, shuffle=shuffled)
        train = DataLoader(loaders.train.dataset, batch_size=10, shuffle=True) if shuffled else loaders.train
        record = new_run().replicate(0)
        run_replicate(
            make_experiment(loaders=Loaders(train, validation, validation), evaluate_every=every), record, Monitor()
        )
        losses.append(train_losses(record))
        ends.append(record.level(2).weights("end"))
    assert losses[1:] == losses[:-1]
    assert all(torch.equal(end[name], ends[0][name]) for end in ends for name in end)


def test_evaluations_leave_a_generator_alone_that_the_training_sampler_draws_from_all_along(make_experiment, new_run):
    losses = []
    for every in (1, 100):
        generator = torch.Generator()
        train, validation = (loader.dataset for loader in make_experiment().loaders[:2])
        sampler = RandomSampler(train, replacement=True, num_samples=70, generator=generator)
        loaders = Loaders(
            DataLoader(train, batch_size=10, sampler=sampler), DataLoader(validation, batch_size=7, generator=generator)
        )
        record = new_run().replicate(0)
        run_replicate(make_experiment(loaders=loaders, evaluate_every=every), record, Monitor())
        losses.append(train_losses(record))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("every", "expected"), [(5, [5, 10, 12]), (1, [*range(1, 13)]), (100, [12]), (-1, [7, 12]), (12, [12])]
)
def test_evaluations_come_at_every_interval_or_epoch_and_after_the_last_iteration(
    every, expected, make_experiment, record
):
    run_replicate(make_experiment(evaluate_every=every, rewind=6, rounds=1), record, Monitor())
    for number, first in ((0, 1), (1, 7)):
        with record.level(number).log.path.open() as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == COLUMNS
        assert [int(row[0]) for row in rows] == [*range(first, 13)]
        evaluated = [int(row[0]) for row in rows if "nan" not in row[3:]]
        assert evaluated == [iteration for iteration in expected if iteration >= first]
        for row in rows:
            assert row[3:] == ["nan"] * 4 or "nan" not in row
            assert math.isfinite(float(row[1]))


def test_the_log_holds_the_sparsity_in_percent(make_experiment, record):
    run_replicate(make_experiment(), record, Monitor())
    for level in record.levels():
        masks = level.masks()
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        assert level.log.read()["sparsity"].tolist() == pytest.approx([100 * pruned / total] * 12)
        assert level.summary()["density"] == pytest.approx(1 - pruned / total)
        shares = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
        assert level.summary()["layers"] == shares  # to the last digit


@pytest.mark.parametrize("seed", range(3))
def test_summary_log_and_weights_tell_the_same_story(seed, make_experiment, record):
    # A learning rate that overshoots, so that the minimum is not at the end.
    experiment = make_experiment(
        optimizer=OptimizerRecipe.named("adam", 0.2), evaluate_every=2, seeds=Seeds(seed), iterations=20, rewind=3
    )
    run_replicate(experiment, record, Monitor())
    for level in record.levels():
        log, summary = level.log.read(), level.summary()
        assert (summary["first_iteration"], summary["iterations"]) == (log["iteration"][0], len(log["iteration"]))
        losses = [loss if loss == loss else math.inf for loss in log["valid_loss"].tolist()]
        best = losses.index(min(losses))
        assert summary["early_stop_iteration"] == log["iteration"][best]
        assert summary["early_stop_valid_loss"] == pytest.approx(losses[best], rel=1e-8)
        assert summary["early_stop_accuracy"] == pytest.approx(log["test_acc"][best], rel=1e-8)
        for key, column in {
            "valid_loss": "valid_loss",
            "valid_accuracy": "valid_acc",
            "test_loss": "test_loss",
            "test_accuracy": "test_acc",
        }.items():
            assert summary[key] == pytest.approx(log[column][-1], rel=1e-8)
        for kind, row in (("early_stop", best), ("end", -1)):
            model = make_experiment().model
            model.load_state_dict(level.weights(kind))
            set_masks(model, level.masks())
            for loader, columns in (
                (experiment.loaders.validation, ("valid_loss", "valid_acc")),
                (experiment.loaders.test, ("test_loss", "test_acc")),
            ):
                measured = evaluate(model, experiment.criterion, loader)
                assert measured == pytest.approx([log[column][row] for column in columns], rel=1e-6)
        assert 0 < summary["train_seconds"] < summary["seconds"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_network_is_measured_in_the_arithmetic_it_trains_in(precision, make_experiment, record):
    experiment = make_experiment(precision=precision, rounds=0)
    run_replicate(experiment, record, Monitor())
    model = make_experiment().model
    model.load_state_dict(record.level(0).weights("end"))
    losses = {}
    for name in ("float32", "bf16"):
        with forward_precision(name, torch.device("cpu")):
            losses[name] = evaluate(model, experiment.criterion, experiment.loaders.test).loss
    assert abs(losses["float32"] - losses["bf16"]) > 1e-5
    assert record.level(0).summary()["test_loss"] == pytest.approx(losses[precision], rel=0, abs=1e-6)


def test_of_equal_minima_the_first_is_the_early_stop(make_experiment, record):
    class Constant(nn.Module):
        def forward(self, outputs, labels):
            return 0 * outputs.sum() + 1.5

    run_replicate(make_experiment(criterion=Constant(), evaluate_every=3, rounds=0), record, Monitor())
    assert record.level(0).summary()["early_stop_iteration"] == 3


def test_a_loss_that_is_not_a_number_never_is_the_minimum(make_experiment, record):
    class Failing(nn.Module):
        """Not a number in the first and in the third evaluation of the validation set."""

        def __init__(self):
            super().__init__()
            self.evaluations = 0

        def forward(self, outputs, labels):
            loss = nn.functional.cross_entropy(outputs, labels)
            if not torch.is_grad_enabled() and len(labels) == 9:
                self.evaluations += 1
                return loss * math.nan if self.evaluations in (1, 3) else loss
            return loss

    loaders = make_experiment().loaders
    validation = DataLoader(loaders.validation.dataset, batch_size=9, sampler=range(9))
    experiment = make_experiment(
        criterion=Failing(), loaders=loaders._replace(validation=validation), evaluate_every=3, rounds=0
    )
    run_replicate(experiment, record, Monitor())
    losses = record.level(0).log.read()["valid_loss"][[2, 5, 8, 11]].tolist()
    assert [math.isnan(loss) for loss in losses] == [True, False, True, False]
    best = 6 if losses[1] <= losses[3] else 12
    assert record.level(0).summary()["early_stop_iteration"] == best


def test_without_validation_and_test_sets_there_is_no_early_stop(make_experiment, record):
    run_replicate(make_experiment(loaders=Loaders(make_experiment().loaders.train)), record, Monitor())
    for level in record.levels():
        summary = level.summary()
        for key in ("early_stop_iteration", "early_stop_accuracy", "valid_loss", "test_loss", "test_accuracy"):
            assert summary[key] is None
        assert level.weights("early_stop") is None
        assert level.weights("end") is not None


@pytest.mark.parametrize("case", range(3))
def test_how_steps_are_chunked_and_checkpointed_changes_no_bit(case, make_experiment, new_run, bits, monkeypatch):
    from lth_fast.experiment import level

    reference = new_run()
    run_replicate(make_experiment(), reference.replicate(0), Monitor())
    monkeypatch.setattr(level, "CHUNK_SECONDS", random.Random(case).choice([0.0, 0.001, 0.01]))
    other = new_run()
    run_replicate(make_experiment(checkpoint_seconds=0.0), other.replicate(0), Monitor())
    assert bits(other) == bits(reference)
