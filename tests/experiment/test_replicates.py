"""Several replicates in one run: what each is, whatever the others are."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

import lth_fast
from lth_fast import models
from lth_fast.cli import main
from lth_fast.experiment import level as level_module
from lth_fast.experiment import lottery, stepping
from lth_fast.experiment.branch import branch_masks
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.prune import prune_all
from lth_fast.record import open_run
from lth_fast.train import Seeds

BASE = ("lenet:8", "digits", "--iter", "6", "--rounds", "2", "--rewind", "2", "--seed", "3", "--quiet")


def files(run, number):
    """Everything that replicate ``number`` left, its times apart."""
    found = {}
    for path in sorted(run.replicate(number).path.rglob("*")):
        name = str(path.relative_to(run.replicate(number).path))
        if path.name == "summary.json":
            summary = json.loads(path.read_text())
            found[name] = {key: value for key, value in summary.items() if "seconds" not in key}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """``run_of(3, ...)``: the finished run of three replicates."""
    monkeypatch.setattr("lth_fast.cli.figure", lambda run: run.path)

    def run(replicates, *flags):
        save = tmp_path / str(len(list(tmp_path.iterdir())))
        assert main([*BASE, "--replicates", str(replicates), "--save", str(save), *flags]) == 0
        return open_run(sorted(save.iterdir())[-1])

    return run


@pytest.fixture
def drawn_weights(make_experiment):
    def redraw(seed):
        torch.manual_seed(seed)
        model = make_experiment().model
        for layer in (model[0], model[5], model[7]):
            layer.reset_parameters()
        return model.state_dict()

    return redraw


@pytest.mark.parametrize("flags", [(), ("--dropout", "0.3", "--optim", "sgd", "-lr", "0.1")])
def test_a_replicate_has_the_same_bits_however_many_others_there_are(run_of, flags):
    one, two, three = (run_of(count, *flags) for count in (1, 2, 3))
    assert len(files(three, 0)) > 10
    assert files(one, 0) == files(two, 0) == files(three, 0)
    assert files(two, 1) == files(three, 1)
    assert [replicate.number for replicate in three.replicates()] == [0, 1, 2]


def test_replicates_have_weights_an_order_and_masks_of_their_own(run_of):
    found = [files(run_of(3), number) for number in range(3)]
    for name in ("initial.safetensors", "0/iterations.csv", "1/masks.safetensors"):
        assert len({replicate[name] for replicate in found}) == 3, name


def test_a_score_compares_with_the_replicates_own_initial_weights(run_of):
    run = run_of(2, "--score", "magnitude_increase", "--prune_rate", "0.5", "--rewind", "0")
    name = "classifier.fc1.weight"
    for number in (0, 1):
        replicate = run.replicate(number)
        increase = replicate.level(0).weights("end")[name].abs() - replicate.initial()[name].abs()
        mask = replicate.level(1).masks()[name]
        assert increase[mask].min() >= increase[~mask].max()


def test_from_the_same_weights_another_replicate_has_another_order(make_experiment):
    experiment = make_experiment(replicates=2, redraw=lambda seed: make_experiment().model.state_dict())
    first, second = (experiment.of_replicate(number).batches(0).next()[1] for number in (0, 1))
    assert not torch.equal(first, second)


def stopping_at(calls):
    class Stopping(Monitor):
        steps = 0

        def stepped(self, iteration, losses):
            self.steps += 1
            if self.steps == calls:
                raise KeyboardInterrupt

    return Stopping()


@pytest.mark.parametrize("calls", [3, 8, 14, 30])
def test_a_run_stopped_in_any_replicate_goes_on_to_the_same_bits(
    calls, make_experiment, drawn_weights, new_run, monkeypatch
):
    monkeypatch.setattr(level_module, "CHUNK_SECONDS", 0.0)  # one step per call
    experiment = make_experiment(replicates=3, redraw=drawn_weights, checkpoint_seconds=0.0, iterations=6, rounds=1)
    reference, stopped = new_run(), new_run()
    expected = run_replicates(experiment, reference, Monitor())
    with pytest.raises(KeyboardInterrupt):
        run_replicates(experiment, stopped, stopping_at(calls))
    summaries = run_replicates(experiment, stopped, Monitor())
    assert [(row["replicate"], row["level"]) for row in summaries] == [(r, n) for r in range(3) for n in range(2)]
    assert [row["test_accuracy"] for row in summaries] == [row["test_accuracy"] for row in expected]
    for number in range(3):
        assert files(stopped, number) == files(reference, number)


def test_ctrl_c_in_a_later_replicate_is_recovered_from_the_command_line(run_of, tmp_path):
    reference = run_of(2)
    run = run_of(2)
    run.replicate(1).level(1).path.joinpath("summary.json").unlink()
    assert main(["--recover", str(run.path), "--quiet"]) == 0
    assert files(run, 1) == files(reference, 1)


@pytest.mark.parametrize("branch", ["reinit", "random_mask"])
def test_a_control_arm_takes_the_masks_of_the_same_replicate_of_its_ticket(run_of, tmp_path, branch):
    control = run_of(2, "--branch", branch)
    (ticket,) = [open_run(path) for path in control.path.parent.iterdir() if path != control.path]
    for number in (0, 1):
        for level in (1, 2):
            masks = control.replicate(number).level(level).masks()
            theirs = ticket.replicate(number).level(level).masks()
            expected = branch_masks(branch, theirs, Seeds(3).generator("mask", number, level))
            for name in theirs:
                assert torch.equal(masks[name], expected[name])
                assert int(masks[name].sum()) == int(theirs[name].sum())
                assert torch.equal(masks[name], theirs[name]) == (branch == "reinit")


def test_new_weights_are_those_of_the_replicate_and_the_level(run_of):
    control = run_of(2, "--branch", "reinit")
    levels = [control.replicate(number).level(level) for number in (0, 1) for level in (1, 2)]
    starts = {level.weights("rewind")["classifier.fc1.weight"].numpy().tobytes() for level in levels}
    assert len(starts) == 4


def test_a_ticket_run_with_more_replicates_serves_and_one_with_fewer_does_not(run_of):
    ticket = run_of(2)
    save = str(ticket.path.parent)
    assert main([*BASE, "--random", "--save", save]) == 0
    assert len(list(ticket.path.parent.iterdir())) == 2
    assert main([*BASE, "--random", "--replicates", "3", "--save", save]) == 0
    assert len(list(ticket.path.parent.iterdir())) == 4


def test_the_report_shows_mean_and_spread_and_the_figure_their_number(run_of, capsys):
    pytest.importorskip("matplotlib")
    run = run_of(3)
    assert main(["report", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "9 of 9 levels complete (3 replicates; mean ± sample sd)" in text
    accuracies = [100 * run.replicate(number).level(0).summary()["test_accuracy"] for number in range(3)]
    values = torch.tensor(accuracies, dtype=torch.float64)
    assert f"{values.mean():.2f} ± {values.std():.2f}" in text


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (1, ["replicate_0 (1 of 3)", "replicate_1 (2 of 3)", "replicate_2 (3 of 3)"]),
        (2, ["replicate_0 (1 of 3), 1 more beside it; what follows is of replicate_0", "replicate_2 (3 of 3)"]),
    ],
)
def test_what_runs_is_said_replicate_by_replicate(room, expected, run_of, capsys, monkeypatch):
    for module in (lottery, stepping):
        monkeypatch.setattr(module, "room_for_replicates", lambda: room)
    run_of(2)
    assert "replicate_" not in capsys.readouterr().err
    args = [argument for argument in BASE if argument != "--quiet"]
    assert main([*args, "--replicates", "3", "--save", str(run_of(1).path.parent)]) == 0
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("replicate_")] == expected


# ---- in Python ----


@pytest.fixture
def search(tmp_path):
    """``iterative_pruning`` of a small network on digits."""
    data = lth_fast.data.load("digits")

    def run(model=None, **options):
        model = models.build("lenet:8", generator=torch.Generator().manual_seed(0)) if model is None else model
        return lth_fast.iterative_pruning(
            model,
            data,
            4,
            1,
            partial(prune_all, rate=0.5),
            optim="adam",
            criterion=nn.CrossEntropyLoss(),
            seed=1,
            save=tmp_path,
            quiet=True,
            **options,
        )

    return run


def digits_network():
    return models.build("lenet:8", (1, 8, 8), generator=torch.Generator().manual_seed(0))


def test_in_python_replicate_0_has_the_models_weights_and_the_others_are_drawn(search):
    model = digits_network()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    result = search(model, replicates=3)
    assert torch.equal(torch.get_rng_state(), before)
    loaded = lth_fast.load_run(result.path)
    assert [(row.replicate, row.level) for row in result.levels] == [(r, n) for r in range(3) for n in range(2)]
    assert [(row["replicate"], row["level"]) for row in loaded.levels] == [(r, n) for r in range(3) for n in range(2)]
    weights = [loaded.run.replicate(number).initial()["classifier.fc1.weight"] for number in range(3)]
    assert torch.equal(weights[0], model.classifier.fc1.weight)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert 0.5 < float(weights[1].std() / weights[0].std()) < 2
    end = loaded.weights(1, "end", replicate=0)["classifier.fc1.weight"]
    assert torch.equal(result.model.classifier.fc1.weight, end)


def test_in_python_a_replicate_has_the_same_bits_however_many_others_there_are(search):
    two, three = (lth_fast.load_run(search(digits_network(), replicates=count).path).run for count in (2, 3))
    for number in (0, 1):
        assert files(two, number) == files(three, number)


def test_a_model_of_your_own_says_how_its_weights_are_drawn(search):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    with pytest.raises(ValueError, match=r"initialize: expected a function .*Sequential has no _initialize_weights"):
        search(model(), replicates=2)

    def initialize(network):
        nn.init.normal_(network[1].weight, 5.0)

    run = lth_fast.load_run(search(model(), replicates=2, initialize=initialize).path).run
    assert run.replicate(0).initial()["1.weight"].mean() < 1
    assert run.replicate(1).initial()["1.weight"].mean() > 4


def test_another_number_of_replicates_contradicts_the_run(search):
    result = search(digits_network(), replicates=2)
    with pytest.raises(ValueError, match="replicates is 2 in the run, 3 was given"):
        search(digits_network(), replicates=3, recover=result.path)
    assert len(search(digits_network(), replicates=2, recover=result.path).levels) == 4


def test_tf32_is_refused_where_there_is_none(search):
    with pytest.raises(ValueError, match="precision: expected float32 or bf16 without gpu=True, got 'tf32'"):
        search(digits_network(), precision="tf32")
