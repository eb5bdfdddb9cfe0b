"""A second copy of a finished run, trained in another order of the data, and the line between the two."""

from __future__ import annotations

import copy
import io
import math
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lth_fast import iterative_pruning, load_run, models
from lth_fast.cli import main
from lth_fast.experiment.branch import BRANCHES, reorders, source_of
from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.experiment.line import POINTS, line_between
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor, ProgressBar
from lth_fast.models import initialise
from lth_fast.prune import prune_all
from lth_fast.record import open_run
from lth_fast.train import ReplicateStepper, Seeds, evaluate

BASE = ("lenet:8", "digits", "--iter", "6", "--rounds", "2", "--rewind", "2", "--prune_rate", "0.5", "--quiet")


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def network(seed=0):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
    )
    initialise(model, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def search(tmp_path, make_experiment):
    """``search()`` is a ticket search of two replicates; ``search(branch="reorder", ticket=...)`` its second copy."""
    data = make_experiment().loaders

    def run(**changes):
        options = {
            "model": network(),
            "data": data,
            "iterations": 6,
            "rounds": 1,
            "prune_net": partial(prune_all, rate=0.4),
            "replicates": 2,
            "initialize": initialise,
            "optim": "adam",
            "criterion": nn.CrossEntropyLoss(),
            "step": 3,
            "rewind": 2,
            "seed": 1,
            "save": tmp_path / "runs",
            "quiet": True,
        }
        return iterative_pruning(**{**options, **changes})

    return run


def levels(*results):
    """The records of every level of every replicate, side by side."""
    runs = [load_run(result.path).run for result in results]
    for number in (0, 1):
        for level in range(2):
            yield tuple(run.replicate(number).level(level) for run in runs)


@pytest.mark.parametrize(
    ("branch", "source"),
    [("reinit", "ticket"), ("random_mask", "ticket"), ("reorder", "ticket"), ("reorder:reinit", "reinit")],
)
def test_a_branch_names_the_arm_that_it_is_compared_with(branch, source):
    assert branch in BRANCHES
    assert source_of(branch) == source
    assert reorders(branch) == branch.startswith("reorder")


@pytest.mark.parametrize("arm", ["ticket", "reinit", "random_mask"])
def test_a_second_copy_has_the_masks_and_the_start_of_the_first_and_another_order(arm, search):
    first = search()
    if arm != "ticket":
        first = search(branch=arm, ticket=first)
    second = search(branch="reorder" if arm == "ticket" else f"reorder:{arm}", ticket=first)
    for own, theirs in levels(second, first):
        assert same(own.masks(), theirs.masks())
        assert same(own.weights("rewind"), theirs.weights("rewind"))
        ends = own.weights("end"), theirs.weights("end")
        assert not torch.equal(ends[0]["1.weight"], ends[1]["1.weight"])
        # Of the way to the rewind point nothing but its end is left.
        first_iteration = 3 if own.number == 0 else theirs.summary()["first_iteration"]
        assert own.summary()["first_iteration"] == first_iteration
        assert own.log.read()["iteration"][0] == first_iteration
        assert list(own.log.read()["iteration"]) == list(range(first_iteration, 7))


ARMS_AND_SETTINGS = [
    *((arm, {"keep_optimizer": kept}) for arm in ("ticket", "reinit", "random_mask") for kept in (False, True)),
    *(("ticket", {"retrain": retrain}) for retrain in ("learn_rate", "finetune")),
]


@pytest.mark.parametrize(("arm", "settings"), ARMS_AND_SETTINGS)
def test_in_the_same_order_a_second_copy_is_the_first_one_bit_for_bit(arm, settings, search, monkeypatch):
    settings = {**settings, "rewind": 0}
    first = search(**settings)
    if arm != "ticket":
        first = search(branch=arm, ticket=first, **settings)
    monkeypatch.setattr(Experiment, "training_seeds", property(lambda self: self.seeds))
    second = search(branch="reorder" if arm == "ticket" else f"reorder:{arm}", ticket=first, **settings)
    for own, theirs in levels(second, first):
        assert own.log.path.read_bytes() == theirs.log.path.read_bytes()
        assert same(own.weights("end"), theirs.weights("end"))
        assert own.summary()["distance"] == own.summary()["error_barrier"] == 0


def test_the_order_and_the_noise_of_a_second_copy_follow_from_the_seeds(search):
    first = search()
    copies = [search(branch="reorder", ticket=first) for _ in range(2)]
    for one, other in levels(*copies):
        assert same(one.weights("end"), other.weights("end"))
    ordered = search(order_seed=5)
    other = search(branch="reorder", ticket=ordered, order_seed=5)
    orders = [
        load_run(result.path).run.replicate(0).level(1).log.read()["train_loss"][0]
        for result in (first, copies[0], ordered, other)
    ]
    assert len(set(orders)) == 4
    reordered = [seeds.stream("reorder") for seeds in (Seeds(1), Seeds(2), Seeds(1, order_seed=5), Seeds(2, 1, 5))]
    assert len(set(reordered)) == 3
    assert reordered[2] == reordered[3]


def test_a_second_copy_has_another_order_augmentation_and_dropout(make_experiment, new_run):
    experiment = make_experiment(rounds=1)
    experiment.loaders.train.augment = True
    first, second = (replace(experiment, branch=branch).batches(1) for branch in ("ticket", "reorder"))
    assert not torch.equal(first.order(0), second.order(0))
    assert not torch.equal(first.draws(0), second.draws(0))
    # Of images that are all the same the order is nothing; dropout is all that is left.
    experiment.loaders.train.augment = False
    experiment.loaders.train.images[:] = experiment.loaders.train.images[0]
    experiment.loaders.train.labels[:] = 1
    ticket, copied = new_run(), new_run()
    run_replicates(experiment, ticket, Monitor())
    run_replicates(replace(experiment, branch="reorder", ticket=ticket), copied, Monitor())
    logs = [run.replicate(0).level(1).log.read()["train_loss"] for run in (ticket, copied)]
    assert (logs[0] != logs[1]).all()


def test_a_summary_tells_the_line_between_the_ends_of_both(search):
    first = search()
    second = search(branch="reorder", ticket=first)
    results = iter(second.levels)
    for own, theirs in levels(second, first):
        summary, accuracies = own.summary(), own.summary()["line_accuracy"]
        result = next(results)
        assert (result.error_barrier, result.distance) == (summary["error_barrier"], summary["distance"])
        assert len(accuracies) == len(summary["line_loss"]) == POINTS == 30
        assert summary["error_barrier"] == pytest.approx((accuracies[0] + accuracies[-1]) / 2 - min(accuracies))
        losses = summary["line_loss"]
        assert summary["loss_barrier"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2)
        ends = own.weights("end"), theirs.weights("end")
        apart = torch.cat(
            [(ends[0][name] - ends[1][name]).double().flatten() for name, _ in network().named_parameters()]
        )
        assert summary["distance"] == pytest.approx(apart.norm().item())
    assert not any(key in theirs.summary() for key in ("distance", "line_loss", "error_barrier"))
    assert first.levels[0].error_barrier is first.levels[0].distance is None


# ---- the line itself ----


def between(make_experiment, loaders, models, criterion, **changes):
    states = [model.state_dict() for model in models]
    experiment = make_experiment(model=models[0], loaders=loaders, criterion=criterion, **changes)
    return line_between(experiment, 1, *states)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_batchnorm_the_line_begins_and_ends_at_what_both_runs_recorded(precision, search):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    first = search(model=plain, precision=precision)
    second = search(model=plain, precision=precision, branch="reorder", ticket=first)
    for own, theirs in levels(second, first):
        for key, line in (("test_accuracy", "line_accuracy"), ("test_loss", "line_loss")):
            ends = [theirs.summary()[key], own.summary()[key]]
            assert [own.summary()[line][0], own.summary()[line][-1]] == pytest.approx(ends, rel=1e-6)


def test_the_line_of_a_linear_network_is_the_parabola_of_its_loss(make_experiment):
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator)
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    loader = [(inputs[:25], targets[:25]), (inputs[25:], targets[25:])]
    found = between(make_experiment, Loaders(loader, None, loader), models, nn.MSELoss())
    for point, loss in enumerate(found["line_loss"]):
        share = point / 29
        outputs = (1 - share) * models[0](inputs) + share * models[1](inputs)
        assert loss == pytest.approx(nn.functional.mse_loss(outputs, targets).item(), rel=1e-5)
    assert found["loss_barrier"] == pytest.approx(abs(found["line_loss"][0] - found["line_loss"][-1]) / 2)
    # There are no classes.
    assert math.isnan(found["error_barrier"])
    assert all(map(math.isnan, found["line_accuracy"]))


def test_a_barrier_is_the_highest_error_over_the_mean_of_the_ends(make_experiment):
    """Two networks that compute the same with opposite signs: halfway nothing but the last bias is left."""
    one, other = (nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2)) for _ in range(2))
    with torch.no_grad():
        for model, sign in ((one, 1.0), (other, -1.0)):
            model[0].weight.fill_(sign)
            model[2].weight.copy_(torch.tensor([[-sign], [sign]]))
            model[2].bias.copy_(torch.tensor([0.1, 0.0]))
    loader = [(torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))]
    found = between(make_experiment, Loaders(loader, None, loader), [one, other], nn.CrossEntropyLoss())
    assert found["line_accuracy"][0] == found["line_accuracy"][-1] == 1
    assert found["line_accuracy"][14] == found["line_accuracy"][15] == found["error_barrier"] == 0.5
    assert found["loss_barrier"] == max(found["line_loss"]) - found["line_loss"][0] > 0.5
    assert found["distance"] == pytest.approx(math.sqrt(2**2 + 2 * 2**2))


def test_a_barrier_over_which_the_loss_is_no_number_has_no_height(make_experiment):
    """Two networks that compute the same with opposite signs; halfway their output is negative, its logarithm NaN."""
    models = [nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1)) for _ in range(2)]
    for model, sign in zip(models, (1.0, -1.0), strict=True):
        for parameter, value in zip(model.parameters(), (sign, sign, -0.1), strict=True):
            nn.init.constant_(parameter, value)
    loader = [(torch.full((2, 1), 2.0), torch.zeros(2))]
    found = between(make_experiment, Loaders(loader, None, loader), models, lambda outputs, _: outputs.mean().log())
    assert math.isnan(found["line_loss"][15])
    assert not math.isnan(found["line_loss"][0] + found["line_loss"][-1])
    assert math.isnan(found["loss_barrier"])


@pytest.mark.parametrize("limit", [1, 100])
def test_along_the_line_batchnorm_has_the_statistics_of_the_training_data(limit, make_experiment, monkeypatch):
    monkeypatch.setattr("lth_fast.experiment.line.STATISTICS_BATCHES", limit)
    generator = torch.Generator().manual_seed(5)
    inputs, labels = torch.randn(60, 64, generator=generator), torch.randint(10, (60,), generator=generator)
    train = [(inputs[:20], labels[:20]), (inputs[20:40], labels[20:40])]
    test = [(inputs[40:], labels[40:])]
    models = [nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)) for _ in range(2)]
    for model, shift in zip(models, (1.0, -3.0), strict=True):
        model[1].running_mean.fill_(shift)
        model[1].num_batches_tracked.fill_(7)
    found = between(make_experiment, Loaders(train, None, test), models, nn.CrossEntropyLoss())
    for point in (0, 1, 14, 29):
        share = point / 29
        model = copy.deepcopy(models[0])
        with torch.no_grad():
            for name, value in model.named_parameters():
                one, other = (each.get_parameter(name) for each in models)
                value.copy_((1 - share) * one + share * other)
            hidden = [model[0](batch) for batch, _ in train[:limit]]
        model[1].running_mean = torch.stack([batch.mean(0) for batch in hidden]).mean(0)
        model[1].running_var = torch.stack([batch.var(0) for batch in hidden]).mean(0)
        expected = evaluate(model, nn.CrossEntropyLoss(), test)
        assert found["line_loss"][point] == pytest.approx(expected.loss, rel=1e-5)
        assert found["line_accuracy"][point] == expected.accuracy


class WithFrozenStatistics(nn.Module):
    """Fine-tuned as is usual: the statistics of pretraining stay."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.second, self.free = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.third = nn.Linear(5, 3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs):
        hidden = torch.relu(self.frozen(self.first(inputs)))
        return self.third(torch.relu(self.free(self.second(hidden))))


def test_batchnorm_that_training_leaves_in_evaluation_mode_keeps_its_statistics_along_the_line(make_experiment):
    generator = torch.Generator().manual_seed(6)
    loader = [(torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator))]
    models = [WithFrozenStatistics(), WithFrozenStatistics()]
    for model in models:
        model.frozen.running_mean.fill_(3.0)
        model.frozen.running_var.fill_(5.0)
    found = between(make_experiment, Loaders(loader, None, loader), models, nn.CrossEntropyLoss())
    for model, loss in zip(models, (found["line_loss"][0], found["line_loss"][-1]), strict=True):
        with torch.no_grad():
            hidden = model.second(torch.relu(model.frozen.eval()(model.first(loader[0][0]))))
        model.free.running_mean, model.free.running_var = hidden.mean(0), hidden.var(0)
        assert loss == pytest.approx(evaluate(model, nn.CrossEntropyLoss(), loader).loss, rel=1e-5)


class OfManyKinds(nn.Module):
    """Parameters that are complex, of little precision, shared, and whole numbers."""

    def __init__(self):
        super().__init__()
        self.waves = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
        self.rough = nn.Linear(3, 3).bfloat16()
        self.shared = self.rough
        self.steps = nn.Parameter(torch.tensor([7, 8]), requires_grad=False)

    def forward(self, inputs):
        return self.shared((inputs.to(self.waves.dtype) @ self.waves).abs().bfloat16()).float()


def test_parameters_of_every_kind_are_on_the_line_and_count_once(make_experiment):
    torch.manual_seed(8)
    models = [OfManyKinds(), OfManyKinds()]
    inputs, labels = torch.randn(20, 4), torch.randint(3, (20,))
    loader = [(inputs, labels)]
    found = between(make_experiment, Loaders(loader, None, loader), models, nn.CrossEntropyLoss())
    ends = [evaluate(model, nn.CrossEntropyLoss(), loader).loss for model in models]
    assert [found["line_loss"][0], found["line_loss"][-1]] == ends
    pairs = zip(*(each.parameters() for each in models), strict=True)
    apart = [one.to(torch.complex128) - other.to(torch.complex128) for one, other in pairs]
    assert found["distance"] == pytest.approx(torch.cat([each.flatten() for each in apart]).norm().item(), rel=1e-12)


@pytest.mark.parametrize("measured", ["validation", "nothing"])
def test_without_a_test_set_the_validation_set_is_measured_and_without_both_the_distance_alone(
    measured, make_experiment
):
    loader = [(torch.randn(6, 4), torch.randint(3, (6,)))]
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    loaders = Loaders(loader, loader if measured == "validation" else None)
    found = between(make_experiment, loaders, models, nn.CrossEntropyLoss())
    assert ("line_loss" in found) == (measured == "validation")
    apart = [(one - other).double().norm() for one, other in zip(*(m.parameters() for m in models), strict=True)]
    assert found["distance"] == pytest.approx(torch.stack(apart).norm().item())


class Noisy(Dataset):
    """Images with other noise whenever they are looked at."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(4), index % 3


@pytest.mark.parametrize("normalised", [True, False])
def test_measuring_depends_on_no_generator_and_leaves_torchs_and_the_loaders_as_they_were(normalised, make_experiment):
    generators = [torch.Generator() for _ in range(2)]
    train, test = (DataLoader(Noisy(), batch_size=4, shuffle=True, generator=own) for own in generators)
    norm = nn.BatchNorm1d(3) if normalised else nn.Identity()
    models = [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), copy.deepcopy(norm)) for _ in range(2)]
    states = [model.state_dict() for model in models]
    experiment = make_experiment(model=models[0], loaders=Loaders(train, None, test), criterion=nn.CrossEntropyLoss())
    found = []
    for seed in (4, 5):
        for generator in (torch.default_generator, *generators):
            generator.manual_seed(seed)
        before = [generator.get_state() for generator in (torch.default_generator, *generators)]
        found.append(line_between(experiment, 1, *states))
        after = [generator.get_state() for generator in (torch.default_generator, *generators)]
        assert all(map(torch.equal, after, before))
    assert found[0] == found[1]


# ---- around it ----


def test_a_terminal_says_that_the_line_is_measured():
    stream = io.StringIO()
    bar = ProgressBar(2, stream)
    bar.level_begins(1, 0, 0, 10, 0.8, 5)
    bar.line_begins(1)
    bar.close()
    assert "measuring the line between both copies" in stream.getvalue()


def test_on_the_command_line_the_run_that_is_copied_goes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lth_fast.cli.figure", lambda run: run.path)
    flags = ("--save", str(tmp_path), "--seed", "1", "--branch", "reorder:random_mask")
    assert main([*(flag for flag in BASE if flag != "--quiet"), *flags]) == 0
    runs = [open_run(path) for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)]
    branches = {run.manifest()["configuration"]["branch"]: run for run in runs}
    assert set(branches) == {"ticket", "random_mask", "reorder:random_mask"}
    second, first = branches["reorder:random_mask"], branches["random_mask"]
    assert second.path.name.endswith("_lenet-8_digits_reorder-random_mask")
    assert second.manifest()["configuration"]["ticket"] == str(first.path)
    for level in range(3):
        masks = [run.replicate(0).level(level).masks() for run in (second, first)]
        assert same(*masks)
    printed = capsys.readouterr()
    assert "no finished random_mask run of these settings" in printed.err
    assert "INFO     [round: 2 | line between both copies]" in printed.err
    assert f"beside its random_mask run: python -m lth_fast report {first.path} {second.path}" in printed.out
    assert main([*BASE, *flags[:2], "--branch", "reorder:random_mask"]) == 0
    assert len(list(tmp_path.iterdir())) == 4  # one more copy of the same two
    copies = [run for run in map(open_run, tmp_path.iterdir()) if "reorder" in run.path.name]
    assert [run.manifest()["configuration"]["ticket"] for run in copies] == [str(first.path)] * 2
    assert main(["report", str(second.path)]) == 0
    assert "error barrier %" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [2, 9, 40])
def test_a_second_copy_that_was_stopped_goes_on_to_the_same_bits(stop, search, tmp_path, bits, monkeypatch):
    """Stopped while it trained and while it measured the line."""
    first = search()
    reference = search(branch="reorder", ticket=first)
    before = set((tmp_path / "runs").iterdir())
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(
        "lth_fast.experiment.line.evaluate" if stop != 9 else "lth_fast.experiment.level.evaluate", interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        search(branch="reorder", ticket=first, checkpoint_seconds=0)
    (stopped,) = set((tmp_path / "runs").iterdir()) - before
    again = search(branch="reorder", recover=stopped, checkpoint_seconds=0)
    assert bits(load_run(again.path).run) == bits(load_run(reference.path).run)


def test_a_copy_of_a_run_that_is_none_of_its_source_or_lacks_weights_is_refused(search, tmp_path):
    first = search()
    with pytest.raises(ValueError, match=r"^ticket: .*: expected a reinit run, got a ticket run"):
        search(branch="reorder:reinit", ticket=first)
    second = search(branch="reorder", ticket=first)
    with pytest.raises(ValueError, match=r"^ticket: .*: expected a ticket run, got a control arm, reorder"):
        search(branch="reorder", ticket=second)
    with pytest.raises(ValueError, match=r"^ticket: expected the result or the folder of a finished reinit run with"):
        search(branch="reorder:reinit")
    with pytest.raises(ValueError, match=r"^ticket: expected the result or the folder of a finished reinit run, got"):
        search(branch="reorder:reinit", ticket=tmp_path)
    end = first.path / "replicate_1" / "1" / "end.safetensors"
    whole = end.read_bytes()
    end.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^ticket: .*replicate_1/1/end\.safetensors is not a whole"):
        search(branch="reorder", ticket=first)
    end.write_bytes(whole)
    end.with_name("rewind.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^ticket: .*replicate_1/1: a file of this complete level is missing"):
        search(branch="reorder", ticket=first)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_levels_of_a_copy_go_on_with_the_first_ones_optimizer(search, monkeypatch):
    first = search(keep_optimizer=True)
    loaded = []
    monkeypatch.setattr(
        "lth_fast.experiment.level.load_dense_optimizer_state", lambda optimizer, model, state: loaded.append(state)
    )
    search(branch="reorder", ticket=first, keep_optimizer=True)
    assert str(loaded) == str([load_run(first.path).run.replicate(number).level(0).optimizer() for number in (0, 1)])


def test_a_copy_that_cannot_go_on_with_the_first_ones_optimizer_is_refused(search, tmp_path):
    first = search(keep_optimizer=True)
    (first.path / "replicate_0" / "1" / "optimizer.pt").unlink()  # which no level goes on from
    search(branch="reorder", ticket=first, keep_optimizer=True)
    (first.path / "replicate_1" / "0" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"^ticket: .*replicate_1/0: a file of this complete level is missing"):
        search(branch="reorder", ticket=first, keep_optimizer=True)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_another_way_to_retrain_has_a_second_copy_but_no_controls(search):
    first = search(retrain="finetune")
    second = search(branch="reorder", ticket=first, retrain="finetune")
    for own, theirs in levels(second, first):
        assert same(own.weights("rewind"), theirs.weights("rewind"))
    with pytest.raises(ValueError, match=r"^retrain: expected 'weights' with branch='reorder:reinit', got 'finetune'"):
        search(branch="reorder:reinit", ticket=first, retrain="finetune")


@pytest.fixture
def second(make_experiment, new_run):
    """The second copy of two replicates that can be trained at once."""

    def lenet(seed):
        return models.build("lenet:12", (1, 6, 6), classes=3, generator=torch.Generator().manual_seed(seed))

    experiment = make_experiment(
        model=lenet(0), replicates=2, redraw=lambda seed: lenet(seed).state_dict(), iterations=24, rewind=5, rounds=1
    )
    ticket = new_run()
    run_replicates(experiment, ticket, Monitor())
    return replace(experiment, branch="reorder", ticket=ticket)


def test_replicates_at_once_are_compared_as_single_ones_are(second, new_run):
    singly = run_replicates(second, new_run(), Monitor())
    together = run_replicates(replace(second, stepper=ReplicateStepper.name), new_run(), Monitor())
    assert len(singly) == 4
    for one, other in zip(together, singly, strict=True):
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-3)
        assert one["line_loss"] == pytest.approx(other["line_loss"], rel=1e-3)
        assert one["distance"] > 0


def test_replicates_at_once_complete_a_level_when_all_their_lines_are_measured(second, new_run, monkeypatch):
    def measured(experiment, *arguments):
        if experiment.replicate == 1:
            raise KeyboardInterrupt
        return line_between(experiment, *arguments)

    run = new_run()
    monkeypatch.setattr("lth_fast.experiment.level.line_between", measured)
    with pytest.raises(KeyboardInterrupt):
        run_replicates(replace(second, stepper=ReplicateStepper.name), run, Monitor())
    assert [run.replicate(number).level(0).complete for number in (0, 1)] == [False, False]


def test_the_line_is_announced_and_counts_as_time_of_the_level(second, new_run, monkeypatch):
    told = []

    class Recording(Monitor):
        def line_begins(self, level):
            told.append(level)

    def slow(*arguments):
        assert told
        time.sleep(0.3)
        return line_between(*arguments)

    monkeypatch.setattr("lth_fast.experiment.level.line_between", slow)
    summaries = run_replicates(second, new_run(), Recording())
    assert told == [0, 1, 0, 1]
    assert all(summary["seconds"] > summary["train_seconds"] + 0.3 for summary in summaries)
