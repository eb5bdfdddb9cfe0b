"""Control arms: the masks of a finished ticket run, with other weights or at other places."""

from __future__ import annotations

import json
import sys
import types
from functools import partial
from os import truncate

import pytest
import torch
from torch import nn

import lth_fast
from lth_fast import iterative_pruning, load_run, models
from lth_fast.cli import main
from lth_fast.experiment.branch import BRANCHES, branch_masks
from lth_fast.experiment.flags import BY_NAME
from lth_fast.models import initialise
from lth_fast.prune import prune_all
from lth_fast.record import Replicate, open_run
from lth_fast.train import Seeds

BASE = ("lenet:8", "digits", "--iter", "6", "--rounds", "2", "--rewind", "2", "--prune_rate", "0.5", "--quiet")


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """``arms("--branch", "reinit")`` runs a command and gives the ticket's and the control's replicate."""
    monkeypatch.setattr("lth_fast.cli.figure", lambda run: run.path)

    def run(*flags: str) -> tuple[Replicate, Replicate]:
        assert main([*BASE, "--save", str(tmp_path), *flags]) == 0
        runs = {path: open_run(path).manifest()["configuration"]["branch"] for path in sorted(tmp_path.iterdir())}
        (ticket,) = [path for path, branch in runs.items() if branch == "ticket"]
        control = [path for path, branch in runs.items() if branch != "ticket"][-1]
        return open_run(ticket).replicate(0), open_run(control).replicate(0)

    return run


@pytest.mark.parametrize("name", ["random", "Rand"])
def test_random_is_no_branch_for_the_flag_of_that_name_means_another_one_than_it_abbreviates(name):
    assert BY_NAME["branch"].read("random_m", "branch") == "random_mask"
    with pytest.raises(ValueError, match=rf"expected one of {', '.join(BRANCHES)} \(--random is reinit\), got"):
        BY_NAME["branch"].read(name, "branch")


@pytest.mark.parametrize("flags", [("--branch", "reinit"), ("--random",)])
def test_reinit_keeps_the_tickets_masks_and_draws_new_weights_for_each_level(arms, flags):
    ticket, control = arms("--seed", "1", *flags)
    name = "classifier.fc1.weight"
    for level in (1, 2):
        masks, theirs = control.level(level).masks(), ticket.level(level).masks()
        assert all(torch.equal(masks[key], theirs[key]) for key in theirs)
    starts = [control.level(1), control.level(2), ticket.level(1)]
    weights = [level.weights("rewind")[name] for level in starts]
    assert not any(torch.equal(a, b) for a, b in zip(weights, weights[1:] + weights[:1], strict=True))
    # New weights have no iteration to be rewound to: they train from the first step on.
    assert control.level(1).summary()["first_iteration"] == 1
    assert ticket.level(1).summary()["first_iteration"] == 3


def test_random_masks_have_the_tickets_survivors_per_layer_elsewhere_and_its_weights(arms):
    ticket, control = arms("--seed", "1", "--branch", "random_mask")
    for level in (1, 2):
        masks, theirs = control.level(level).masks(), ticket.level(level).masks()
        for name in theirs:
            assert int(masks[name].sum()) == int(theirs[name].sum())
            assert not torch.equal(masks[name], theirs[name])
    rewind, theirs = control.level(1).weights("rewind"), ticket.level(1).weights("rewind")
    assert all(torch.equal(rewind[name], theirs[name]) for name in theirs)
    assert control.level(1).summary()["first_iteration"] == 3


def test_arms_share_the_order_of_the_data_and_the_dense_network_has_its_own_weights_only_after_reinit(arms):
    ticket, control = arms("--seed", "1", "--branch", "random_mask")
    assert ticket.level(0).log.path.read_bytes() == control.level(0).log.path.read_bytes()


def test_a_finished_ticket_run_is_taken_and_not_run_again(arms, tmp_path):
    assert main([*BASE, "--save", str(tmp_path), "--seed", "5"]) == 0
    (before,) = tmp_path.iterdir()
    ticket, control = arms("--random")  # without a seed: the ticket's
    assert ticket.path.parent == before
    assert open_run(control.path.parent).manifest()["configuration"]["seed"] == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_a_ticket_run_with_other_settings_is_not_taken(arms, tmp_path):
    assert main([*BASE[:-3], "--prune_rate", "0.4", "--quiet", "--save", str(tmp_path), "--seed", "1"]) == 0
    assert main([*BASE, "--save", str(tmp_path), "--seed", "1", "--random"]) == 0
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("branch", ["reinit", "random_mask", "reorder"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("nn.ReLU()", "nn.Tanh()"), ": model: expected that run's, (2): ReLU(), got (2): Tanh(); "),
        (("12", "13"), "1.weight of shape [12, 64] there, [13, 64] here"),
        (("nn.ReLU()", "nn.ReLU(), nn.Dropout(0.5)"), "3.weight of shape [10, 12] there, none here"),
    ],
    ids=["another function", "another shape", "one more layer"],
)
def test_a_ticket_run_of_another_network_by_the_same_name_is_refused_and_nothing_is_created(
    branch, changed, said, tmp_path, monkeypatch, capsys
):
    network = "nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))"
    module = types.ModuleType("a_changing_zoo")
    monkeypatch.setitem(sys.modules, "a_changing_zoo", module)
    monkeypatch.setattr("lth_fast.cli.figure", lambda run: run.path)
    command = ["a_changing_zoo:net", *BASE[1:], "--seed", "1", "--save", str(tmp_path)]
    exec(f"from torch import nn\ndef net(): return {network}", vars(module))
    assert main(command) == 0
    (ticket,) = tmp_path.iterdir()
    exec(f"def net(): return {network.replace(*changed)}", vars(module))
    capsys.readouterr()
    assert main([*command, "--branch", branch]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --branch {branch}: ") and str(ticket) in line and said in line
    assert list(tmp_path.iterdir()) == [ticket]
    assert main(command) == 0
    assert main([*command, "--branch", branch]) == 0  # of the newest that fits


def test_a_ticket_run_from_a_device_where_the_optimizer_is_of_another_package_is_taken(arms, tmp_path):
    arms("--seed", "1", "--random")
    (ticket,) = [path for path in tmp_path.iterdir() if "reinit" not in path.name]
    manifest = json.loads((ticket / "meta.json").read_text())
    manifest["optimizer"] = {**manifest["optimizer"], "package": "torch", "fused": True}
    (ticket / "meta.json").write_text(json.dumps(manifest))
    taken, control = arms("--seed", "1", "--branch", "random_mask")
    assert taken.path.parent == ticket and control.level(2).complete


@pytest.mark.parametrize(
    ("branch", "file"), [("reinit", "masks"), ("random_mask", "masks"), ("reorder", "masks"), ("reorder", "end")]
)
def test_a_damaged_ticket_run_is_refused_before_a_control_is_created(branch, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lth_fast.cli.figure", lambda run: run.path)
    assert main([*BASE, "--seed", "1", "--save", str(tmp_path)]) == 0
    (ticket,) = tmp_path.iterdir()
    damaged = ticket / "replicate_0" / "2" / f"{file}.safetensors"
    truncate(damaged, 50)
    capsys.readouterr()
    assert main([*BASE, "--seed", "1", "--save", str(tmp_path), "--branch", branch]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --branch {branch}: ticket: ") and str(damaged) in line
    assert list(tmp_path.iterdir()) == [ticket]


def test_a_shuffled_mask_depends_on_its_generator_alone():
    mask = {"weight": torch.rand(9, 7, generator=torch.Generator().manual_seed(3)) < 0.3}
    draws = [branch_masks("random_mask", mask, torch.Generator().manual_seed(seed))["weight"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ---- in Python, for a model of one's own ----


def own_network(hidden=8, seed=0, activation=None):
    activation = activation or nn.ReLU()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), activation, nn.Dropout(0.1), nn.Linear(hidden, 10)
    )
    initialise(model, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def search(tmp_path):
    """``search()`` is a ticket search of two replicates; ``search(branch="reinit", ticket=...)`` its control."""
    data = lth_fast.data.load("digits")

    def run(model=None, **changes):
        options = {
            "data": data,
            "iterations": 6,
            "rounds": 2,
            "prune_net": partial(prune_all, rate=0.4),
            "replicates": 2,
            "initialize": initialise,
            "optim": "adam",
            "criterion": nn.CrossEntropyLoss(),
            "step": 3,
            "rewind": 2,
            "save": tmp_path / "runs",
            "quiet": True,
        }
        return iterative_pruning(own_network() if model is None else model, **{**options, **changes})

    return run


def pairs(control, ticket):
    """Replicate, level and the records of each pruned level of a control arm, with those of its ticket."""
    for number in (0, 1):
        for level in (1, 2):
            own, theirs = (load_run(result.path).run.replicate(number).level(level) for result in (control, ticket))
            yield number, level, own, theirs


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_in_python_reinit_has_the_tickets_masks_and_weights_that_initialize_drew_for_replicate_and_level(search):
    ticket = search(seed=1)
    control = search(branch="reinit", ticket=ticket)
    starts = []
    for number, level, own, theirs in pairs(control, ticket):
        assert same(own.masks(), theirs.masks())
        drawn = own_network()
        torch.manual_seed(Seeds(1).stream("init", number, level, part=1))
        initialise(drawn)
        assert same(own.weights("rewind"), drawn.state_dict())
        assert own.summary()["first_iteration"] == 1
        starts += [own.weights("rewind")["1.weight"], theirs.weights("rewind")["1.weight"]]
    # The ticket's two levels start from the same weights.
    assert len({weights.numpy().tobytes() for weights in starts}) == 4 + 2


def test_in_python_random_masks_have_the_tickets_densities_per_layer_elsewhere_and_its_weights(search):
    ticket = search(seed=1)
    control = search(branch="random_mask", ticket=ticket)
    for number, level, own, theirs in pairs(control, ticket):
        assert own.summary()["layers"] == theirs.summary()["layers"]
        assert not any(torch.equal(own.masks()[name], mask) for name, mask in theirs.masks().items())
        assert same(own.masks(), branch_masks("random_mask", theirs.masks(), Seeds(1).generator("mask", number, level)))
        assert same(own.weights("rewind"), theirs.weights("rewind"))
        assert own.summary()["first_iteration"] == 3


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
def test_in_python_a_control_has_the_dense_network_the_records_and_the_result_of_a_search(branch, search):
    def never(model):
        raise AssertionError("a control arm prunes nothing")

    ticket = search(seed=1)
    control = search(branch=branch, ticket=ticket, prune_net=never)
    assert control.path.name.endswith(f"_Sequential_digits_{branch}")
    own, theirs = load_run(control.path), load_run(ticket.path)
    for number in (0, 1):
        dense = [loaded.run.replicate(number).level(0) for loaded in (own, theirs)]
        assert dense[0].log.path.read_bytes() == dense[1].log.path.read_bytes()
        assert same(dense[0].weights("end"), dense[1].weights("end"))
    files = [{str(file.relative_to(run.path)) for file in run.path.rglob("*")} for run in (control, ticket)]
    assert files[0] == files[1]
    settings, ticket_settings = (loaded.manifest["configuration"] for loaded in (own, theirs))
    assert settings == {**ticket_settings, "branch": branch, "ticket": str(ticket.path)}
    assert [(row.replicate, row.level, row.density) for row in control.levels] == [
        (row.replicate, row.level, row.density) for row in ticket.levels
    ]
    assert same(control.model.state_dict(), own.weights(2, "end"))
    assert same(lth_fast.nn.masks(control.model), own.masks(2))


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
@pytest.mark.parametrize("stop", [4, 9, 13, 20, 26])
def test_in_python_a_control_that_was_stopped_goes_on_to_the_same_bits(
    stop, branch, search, tmp_path, bits, interrupted_after, monkeypatch
):
    """Stopped in the dense network and in pruned levels of both replicates; both folders have moved since."""
    monkeypatch.setattr("lth_fast.experiment.level.CHUNK_SECONDS", 0.0)
    ticket = search(seed=1)
    reference = search(branch=branch, ticket=ticket)

    before = set((tmp_path / "runs").iterdir())
    with pytest.raises(KeyboardInterrupt):
        search(branch=branch, ticket=ticket, criterion=interrupted_after(stop), checkpoint_seconds=0)
    (stopped,) = set((tmp_path / "runs").iterdir()) - before
    (tmp_path / "runs").rename(tmp_path / "moved")
    path = tmp_path / "moved" / stopped.name
    with pytest.raises(ValueError, match=f"branch is {branch} in the run, ticket was given"):
        search(recover=path, checkpoint_seconds=0)
    with pytest.raises(ValueError, match=r"ticket is .*moved.* in the run, .* was given"):
        search(branch=branch, ticket=path, recover=path, checkpoint_seconds=0)
    again = search(branch=branch, recover=path, checkpoint_seconds=0)
    assert bits(load_run(again.path).run) == bits(load_run(tmp_path / "moved" / reference.path.name).run)
    assert same(again.model.state_dict(), reference.model.state_dict())
    named = search(
        branch=branch, ticket=tmp_path / "moved" / ticket.path.name, recover=path, seed=1, checkpoint_seconds=0
    )
    assert named.levels == again.levels


def test_in_python_a_ticket_run_with_more_replicates_serves_given_as_result_path_or_text(search):
    ticket = search(seed=1)
    controls = [search(branch="random_mask", ticket=ticket)] + [
        search(branch="random_mask", ticket=given, replicates=1, initialize=None)
        for given in (ticket, ticket.path, str(ticket.path))
    ]
    runs = [load_run(control.path) for control in controls]
    for level in (1, 2):
        assert all(same(run.masks(level), runs[0].masks(level)) for run in runs[1:])
        assert all(same(run.weights(level), runs[0].weights(level)) for run in runs[1:])


def test_in_python_a_search_from_before_there_were_controls_serves_as_ticket_and_is_recovered(search):
    ticket = search(seed=1)
    meta = ticket.path / "meta.json"
    manifest = json.loads(meta.read_text())
    del manifest["configuration"]["branch"], manifest["configuration"]["ticket"]
    meta.write_text(json.dumps(manifest))
    assert search(recover=ticket.path).levels == ticket.levels
    control = search(branch="reinit", ticket=ticket)
    assert all(same(own.masks(), theirs.masks()) for _, _, own, theirs in pairs(control, ticket))


WRONG = {
    "none": (lambda ticket: {"ticket": None}, "ticket: expected the result or the folder of a finished ticket run wit"),
    "no folder": (
        lambda ticket: {"ticket": ticket.path / "none"},
        r"ticket: expected the result or the folder of a finished ticket run, got '.*none' \(no run at",
    ),
    "other type": (
        lambda ticket: {"ticket": 3},
        "ticket: expected the result or the folder of a finished ticket run, got int",
    ),
    "without a branch": (
        lambda ticket: {"branch": "ticket"},
        "ticket: expected None with branch='ticket', got /.*_Sequential_digits",
    ),
    "unknown branch": (
        lambda ticket: {"branch": "reinitialise"},
        f"branch: expected one of {', '.join(BRANCHES)}, got",
    ),
    "unfinished": (
        lambda ticket: (ticket.path / "replicate_1" / "2" / "summary.json").unlink(),
        "ticket: .*: expected a finished run of 2 replicates or more, got one with levels to train",
    ),
    "fewer replicates": (
        lambda ticket: {"replicates": 3},
        "ticket: .*: expected a finished run of 3 replicates or more, got one with levels to train",
    ),
    "no masks": (
        lambda ticket: (ticket.path / "replicate_0" / "1" / "masks.safetensors").unlink(),
        "ticket: .*replicate_0/1: a file of this complete level is missing",
    ),
    "damaged masks": (
        lambda ticket: truncate(ticket.path / "replicate_1" / "2" / "masks.safetensors", 9),
        r"ticket: .*replicate_1/2/masks\.safetensors",
    ),
    "no initial weights": (
        lambda ticket: (ticket.path / "replicate_1" / "initial.safetensors").unlink(),
        r"ticket: .*/replicate_1/initial\.safetensors is missing; recovering the run writes it again",
    ),
    "other settings": (
        lambda ticket: {"iterations": 7, "rewind": 1},
        "ticket: .*: expected a run of the same settings; "
        "iterations is 6 there, 7 was given; rewind is 2 there, 1 was given",
    ),
    "other seed": (
        lambda ticket: {"seed": 2},
        "ticket: .*: expected a run of the same settings; seed is 1 there, 2 was given",
    ),
    "other shape": (
        lambda ticket: {"model": own_network(hidden=9)},
        r"model: expected the network of the ticket run .*, got 1\.weight of shape \[8, 64\] there, \[9, 64\] here; ",
    ),
    "other layers": (
        lambda ticket: {"model": own_network()[:5]},
        r"model: expected the network of the ticket run .*, got 5\.weight of shape \[10, 8\] there, none here; ",
    ),
    "other weights": (
        lambda ticket: {"model": own_network(seed=1)},
        r"model: expected the initial weights of replicate 0 of the ticket run, got others in 1\.weight, 5\.weight; lt",
    ),
    "other draws": (
        lambda ticket: {"initialize": lambda model: initialise(model, "kaiming")},
        "initialize: expected it to draw the initial weights of replicate 1 of the ticket run, got others in 1.weight",
    ),
    "no draws": (
        lambda ticket: {"replicates": 1, "initialize": lambda model: own_network(seed=1)},
        "initialize: expected it to draw new weights into the model it is given, got the old ones",
    ),
    "nothing that draws": (
        lambda ticket: {"replicates": 1, "initialize": None},
        "initialize: expected a function that draws new weights into a model, got none",
    ),
    "other optimizer": (lambda ticket: {"optim": "sgd"}, "ticket: .*: optimizer: expected that run's, .*Adam.*, got"),
    "other activation": (
        lambda ticket: {"model": own_network(activation=nn.Tanh())},
        r"ticket: .*: model: expected that run's, \(3\): ReLU\(\), got \(3\): Tanh\(\)",
    ),
    "other criterion": (
        lambda ticket: {"criterion": nn.MultiMarginLoss()},
        "ticket: .*: criterion: expected that run's, CrossEntropyLoss.*, got MultiMarginLoss",
    ),
    "other data": (
        lambda ticket: {"data": lth_fast.data.load("digits", validation=100)},
        "ticket: .*: examples: expected that run's, .*, got .*'validation': 100",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_in_python_a_ticket_run_that_a_control_cannot_be_compared_with_is_refused_and_nothing_is_created(
    wrong, search, tmp_path
):
    change, message = WRONG[wrong]
    ticket = search(seed=1)
    changes = {"branch": "reinit", "ticket": ticket, **(change(ticket) or {})}
    with pytest.raises(TypeError if wrong == "other type" else ValueError, match=f"^{message}"):
        search(**changes)
    assert list((tmp_path / "runs").iterdir()) == [ticket.path]


def test_in_python_a_control_arm_is_no_ticket_and_neither_is_a_run_of_the_command_line(search, tmp_path):
    ticket = search(seed=1, replicates=1)
    control = search(branch="reinit", ticket=ticket, replicates=1)
    with pytest.raises(ValueError, match=r"ticket: .*: expected a ticket run, got a control arm, reinit"):
        search(branch="reinit", ticket=control, replicates=1)
    assert main([*BASE, "--save", str(tmp_path / "typed"), "--seed", "1"]) == 0
    (typed,) = (tmp_path / "typed").iterdir()
    with pytest.raises(ValueError, match=r"ticket: .* was made by the command line; its controls are too: --branch"):
        search(branch="reinit", ticket=typed, replicates=1)


def test_in_python_a_control_may_run_elsewhere_and_keep_other_weights_than_its_ticket(search):
    ticket = search(seed=1, plan="masked", threads=1)
    changes = {"plan": "sparse", "threads": 2, "checkpoint_seconds": 0, "keep": [1], "save": ticket.path / ".."}
    control = search(branch="reinit", ticket=ticket, **changes)
    assert all(same(own.masks(), theirs.masks()) for _, _, own, theirs in pairs(control, ticket))


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
def test_in_python_a_control_has_the_bits_of_the_command_lines_and_its_result_is_had_without_its_ticket(
    branch, arms, search, bits, tmp_path
):
    arms("--seed", "3", "--replicates", "2", "--branch", branch)
    typed = [open_run(path) for path in sorted(tmp_path.iterdir())]
    seeds, settings = Seeds(3), typed[1].manifest()["configuration"]
    changes = {
        "model": models.build(
            "lenet:8", (1, 8, 8), generator=torch.Generator().manual_seed(seeds.stream("init")), init=settings["init"]
        ),
        "data": lth_fast.data.load("digits", train_batch_size=settings["batch_size"], split_seed=seeds.stream("split")),
        "prune_net": partial(prune_all, rate=settings["prune_rate"]),
        "initialize": None,  # the network's own
        **{name: settings[name] for name in ("optim", "learn_rate", "step")},
    }
    ticket = search(seed=3, **changes)
    control = search(branch=branch, ticket=ticket, **changes)
    assert [bits(open_run(result.path)) for result in (ticket, control)] == [bits(run) for run in typed]
    ticket.path.rename(tmp_path / "elsewhere")
    assert search(branch=branch, recover=control.path, **changes).levels == control.levels
