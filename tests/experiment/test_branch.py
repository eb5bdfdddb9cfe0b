"""Control arms: the masks of a finished ticket run, with other weights or at other places."""

from __future__ import annotations

import pytest
import torch

from lth_fast.cli import main
from lth_fast.experiment.branch import branch_masks
from lth_fast.record import Replicate, open_run

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


def test_a_shuffled_mask_depends_on_its_generator_alone():
    mask = {"weight": torch.rand(9, 7, generator=torch.Generator().manual_seed(3)) < 0.3}
    draws = [branch_masks("random_mask", mask, torch.Generator().manual_seed(seed))["weight"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
