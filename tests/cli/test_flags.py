"""Every flag of the command line: what it does to a run, and what it refuses. A flag without a row fails a test."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from lth_fast import __version__, data, models
from lth_fast.cli import main, parser
from lth_fast.experiment.branch import BRANCHES
from lth_fast.experiment.config import Config
from lth_fast.experiment.flags import BY_NAME, FLAGS
from lth_fast.experiment.presets import presets
from lth_fast.experiment.pruning import ROLES
from lth_fast.prune import DISTRIBUTIONS, SCOPES, SCORES
from lth_fast.record import Level, open_run
from lth_fast.train.precision import PRECISIONS

BASE = ("lenet:8", "digits", "--iter", "6", "--rounds", "1", "--seed", "1")
WHOLE_NUMBERS = ("0.5", "2.0", "many", "", "nan", "1e3")


class Row(NamedTuple):
    """A way to give a flag, and what is to be seen of it in the run ``BASE`` with it."""

    given: str
    seen: Callable[..., object]


def equal(found, expected):
    assert found == expected


def evaluated(outcome, level=0):
    log = outcome.level(level).log.read()
    return log["iteration"][~(log["valid_loss"] != log["valid_loss"])].tolist()


def kept(outcome, level=1):
    return {name: float(mask.float().mean()) for name, mask in outcome.level(level).masks().items()}


def sees_the_data_folder(outcome):
    equal(outcome.run.manifest()["examples"], {"train": 100, "validation": 5000, "test": 60})


def sees_the_batch_size(outcome):
    equal([len(step.labels) for step in outcome.steps[:6]], [500, 500, 297, 500, 500, 297])


def sees_the_optimizer(outcome):
    equal({type(step.optimizer) for step in outcome.steps}, {torch.optim.RMSprop})
    equal(outcome.run.manifest()["optimizer"]["name"], "RMSprop")


def sees_the_learning_rate(outcome):
    equal({rate for step in outcome.steps for rate in step.rates}, {0.025})


def sees_the_iterations(outcome):
    equal([step.iteration for step in outcome.steps], [*range(1, 18)] * 2)
    for number in (0, 1):
        equal(outcome.level(number).log.read()["iteration"].tolist(), [*range(1, 18)])
        equal(outcome.level(number).summary()["iterations"], 17)


def sees_the_rounds(outcome):
    equal([level.number for level in outcome.run.replicate(0).levels()], [0, 1, 2, 3])
    assert all(outcome.level(number).complete for number in range(4))


def sees_no_rounds(outcome):
    equal([level.number for level in outcome.run.replicate(0).levels()], [0])


def sees_two_replicates(outcome):
    first, second = outcome.run.replicates()
    equal([[level.complete for level in replicate.levels()] for replicate in (first, second)], [[True, True]] * 2)
    name = "classifier.fc1.weight"
    assert not torch.equal(first.initial()[name], second.initial()[name])
    # Side by side, where there are cores for it: the steps of each network by itself are in order.
    by_network = [[step.iteration for step in outcome.steps if step.level == number] for number in range(4)]
    equal(by_network, [[*range(1, 7)]] * 4)


def sees_evaluations_every_four_iterations(outcome):
    equal(evaluated(outcome), [4, 6])
    equal(evaluated(outcome, level=1), [4, 6])


def sees_the_rewound_level(outcome):
    equal([step.iteration for step in outcome.steps], [1, 2, 3, 4, 5, 6, 5, 6])
    after_four = outcome.steps[3].state
    for number in (0, 1):
        for name, value in outcome.level(number).weights("rewind").items():
            assert torch.equal(value, after_four[name])
    equal(outcome.configuration["rewind"], 4)


def sees_a_level_go_on_at(*rates):
    def seen(outcome):
        equal([step.iteration for step in outcome.steps], [1, 2, 3, 4, 5, 6, 5, 6])
        equal([step.rates[0] for step in outcome.steps[6:]], pytest.approx(rates))
        start, end = outcome.level(1).weights("rewind"), outcome.level(0).weights("end")
        assert all(torch.equal(start[name], value) for name, value in end.items())

    return seen


def sees_the_prune_rate(outcome):
    equal(kept(outcome), {"classifier.fc1.weight": pytest.approx(0.5), "classifier.fc2.weight": pytest.approx(0.75)})


def sees_no_pruning(outcome):
    equal(set(kept(outcome).values()), {1.0})


def sees_the_seed(outcome):
    equal(outcome.configuration["seed"], 0)
    equal(outcome.configuration["sources"]["seed"], "given")


def sees_the_threads(outcome):
    equal({step.threads for step in outcome.steps}, {2})
    equal(outcome.run.manifest()["environment"]["threads"], 2)


def sees_sparse_layers(outcome):
    plan = outcome.run.manifest()["plan"]["1"]
    equal({name: entry["form"] for name, entry in plan.items()}, dict.fromkeys(kept(outcome), "sparse"))
    values = outcome.steps[-1].optimizer.param_groups[0]["params"][0::2]
    equal([value.numel() for value in values], [int(mask.sum()) for mask in outcome.level(1).masks().values()])


def sees_masked_layers(outcome):
    plan = outcome.run.manifest()["plan"]["1"]
    equal({name: entry["form"] for name, entry in plan.items()}, dict.fromkeys(kept(outcome), "masked"))
    equal(outcome.steps[-1].optimizer.param_groups[0]["params"][0].shape, (8, 64))


def sees_one_threshold(outcome):
    found = kept(outcome)
    equal(found["classifier.fc2.weight"], 1.0)
    equal(found["classifier.fc1.weight"], pytest.approx(0.8, abs=0.001))


def sees_openlths_count(outcome):
    # Of all 592 weights 118.4 are a fifth; OpenLTH rounds that up and prunes one more.
    equal(kept(outcome), {"classifier.fc1.weight": (512 - 120) / 512, "classifier.fc2.weight": 1.0})


def sees_validation_images(count):
    def seen(outcome):
        sizes = {"train": 1547 - count, "validation": count, "test": 250}
        equal(outcome.run.manifest()["examples"], {name: size for name, size in sizes.items() if size})
        summary = outcome.level(1).summary()
        equal((summary["early_stop_iteration"] is None, summary["test_accuracy"] is None), (count == 0, False))

    return seen


def sees_biases_drawn(outcome):
    bias = outcome.run.replicate(0).initial()["classifier.fc1.bias"]
    assert 0 < bias.abs().min() < bias.abs().max() <= 1 / 64**0.5


def sees_other_weights_pruned(outcome):
    equal(
        kept(outcome),
        {"classifier.fc1.weight": pytest.approx(0.8, abs=0.001), "classifier.fc2.weight": pytest.approx(0.9)},
    )
    name = "classifier.fc1.weight"
    magnitude, mask = outcome.level(0).weights("end")[name].abs(), outcome.level(1).masks()[name]
    assert magnitude[~mask].max() > magnitude[mask].min()


def sees_the_weights_that_grew_least_pruned(outcome):
    sees_other_weights_pruned(outcome)
    initial, end = outcome.run.replicate(0).initial(), outcome.level(0).weights("end")
    for name, mask in outcome.level(1).masks().items():
        growth = end[name].abs() - initial[name].abs()
        assert growth[~mask].max() <= growth[mask].min()


def sees_the_densities_of_erk(outcome):
    # 80 weights of the output layer would be denser than dense; the other layer carries the fifth of all 592.
    equal(kept(outcome), {"classifier.fc1.weight": (512 - 118) / 512, "classifier.fc2.weight": 1.0})


def sees_pruned_biases(outcome):
    equal([kept(outcome, level)["classifier.fc1.bias"] for level in (0, 1)], [1.0, 0.75])
    mask = outcome.level(1).masks()["classifier.fc1.bias"]
    assert (outcome.level(1).weights("end")["classifier.fc1.bias"][~mask] == 0).all()


def sees_initial_weights_of_spread(sigma):
    def seen(outcome):
        weight = outcome.run.replicate(0).initial()["classifier.fc1.weight"]
        equal(float(weight.std()), pytest.approx(sigma, rel=0.1))

    return seen


def sees_orthogonal_rows(outcome):
    weight = outcome.run.replicate(0).initial()["classifier.fc1.weight"]
    assert torch.allclose(weight @ weight.T, torch.eye(8), atol=1e-5)


def sees_the_optimizer_go_on(outcome):
    # Adam counts its steps: the pruned level goes on from the dense one's six.
    (steps,) = {int(value["step"]) for value in outcome.level(1).optimizer()["state"].values()}
    equal(steps, 12)


def sees_the_kept_weights(outcome):
    for iteration, expected in ((0, outcome.run.replicate(0).initial()), (3, outcome.steps[2].state)):
        for name, value in outcome.level(0).kept(iteration).items():
            assert torch.equal(value, expected[name])
    equal(outcome.level(1).kept(3), None)


def sees_settings_of_the_optimizer(**expected):
    def seen(outcome):
        for step in outcome.steps:
            for name, value in expected.items():
                equal(step.optimizer.param_groups[0][name], value)

    return seen


def sees_rates(*expected):
    return lambda outcome: equal([step.rates[0] for step in outcome.steps[:6]], pytest.approx(expected))


def sees_the_preset(outcome):
    configuration = outcome.configuration
    equal((configuration["scope"], configuration["optim"], configuration["batch_size"]), ("global", "sgd", 128))
    equal(configuration["sources"]["scope"], "preset")
    equal(len(outcome.steps[0].labels), 128)
    sees_openlths_count(outcome)
    sees_validation_images(0)(outcome)
    sees_biases_drawn(outcome)


ROWS = [
    Row("--fc_rate 0.5", sees_the_prune_rate),
    Row("-fc 0.5 --prune_rate 0", sees_the_prune_rate),
    Row("--scope global", sees_one_threshold),
    Row("--prune_global", sees_one_threshold),
    Row("--score random", sees_other_weights_pruned),
    Row("--score magnitude_increase", sees_the_weights_that_grew_least_pruned),
    Row("--score snip", sees_other_weights_pruned),
    Row("--score grasp", sees_other_weights_pruned),
    Row("--score synflow", sees_other_weights_pruned),
    Row("--distribution erk", sees_the_densities_of_erk),
    Row("--whole output", sees_one_threshold),
    Row("--count openlth --scope global", sees_openlths_count),
    Row("--prune_bias", sees_pruned_biases),
    Row("--init normal:0.5", sees_initial_weights_of_spread(0.5)),
    Row("--init glorot", sees_initial_weights_of_spread((2 / 72) ** 0.5)),
    Row("--init kaiming", sees_initial_weights_of_spread((2 / 64) ** 0.5)),
    Row("--init orthogonal", sees_orthogonal_rows),
    Row("--init openlth", sees_biases_drawn),
    Row("--keep_optimizer", sees_the_optimizer_go_on),
    Row("--keep 0,3", sees_the_kept_weights),
    Row("--momentum 0.5 --optim sgd", sees_settings_of_the_optimizer(momentum=0.5, nesterov=False)),
    Row("--nesterov --momentum 0.9 --optim sgd", sees_settings_of_the_optimizer(momentum=0.9, nesterov=True)),
    Row("--weight_decay 0.25", sees_settings_of_the_optimizer(weight_decay=0.25)),
    Row("--weight_decay 0 --optim adamw", sees_settings_of_the_optimizer(weight_decay=0)),
    Row("--optim adamw", sees_settings_of_the_optimizer(weight_decay=0)),
    Row("--milestones 2,4 -lr 1", sees_rates(1, 1, 0.1, 0.1, 0.01, 0.01)),
    Row("--milestones none -lr 1", sees_rates(1, 1, 1, 1, 1, 1)),
    Row("--warmup 4 -lr 1", sees_rates(0.25, 0.5, 0.75, 1, 1, 1)),
    Row("--plan sparse", sees_sparse_layers),
    Row("--plan masked", sees_masked_layers),
    Row("--precision bf16", lambda outcome: equal(outcome.configuration["precision"], "bf16")),
    Row("--preset openlth", sees_the_preset),
    Row("--data {data} mnist", sees_the_data_folder),
    Row("-p {data} mnist", sees_the_data_folder),
    Row("--validation 0", sees_validation_images(0)),
    Row("--validation 47", sees_validation_images(47)),
    Row("--validation 0.1", sees_validation_images(155)),
    Row("--batch_size 500", sees_the_batch_size),
    Row("--optim RMSprop", sees_the_optimizer),
    Row("-o rms", sees_the_optimizer),
    Row("--learn_rate 0.025", sees_the_learning_rate),
    Row("-lr 2.5e-2", sees_the_learning_rate),
    Row("--iter 17", sees_the_iterations),
    Row("-i 17", sees_the_iterations),
    Row("--rounds 3", sees_the_rounds),
    Row("-r 3", sees_the_rounds),
    Row("--rounds 0", sees_no_rounds),
    Row("--replicates 2", sees_two_replicates),
    Row("--step 4", sees_evaluations_every_four_iterations),
    Row("-es 4", sees_evaluations_every_four_iterations),
    Row("--step -1 --batch_size 500 --iter 7", lambda outcome: equal(evaluated(outcome), [3, 6, 7])),
    Row("--step 100 --iter 201", lambda outcome: equal(evaluated(outcome), [100, 200, 201])),
    Row("--iter 201", lambda outcome: equal(evaluated(outcome), [100, 200, 201])),
    Row("--step 1000", lambda outcome: equal(evaluated(outcome), [6])),
    Row("--rewind 4", sees_the_rewound_level),
    Row("-rw 4", sees_the_rewound_level),
    Row("--rewind 0.6667", sees_the_rewound_level),
    Row("--retrain weights -rw 4", sees_the_rewound_level),
    Row("--retrain learn_rate -rw 4 --milestones 2,5 -lr 1", sees_a_level_go_on_at(0.1, 0.01)),
    Row("--retrain finetune -rw 4 --milestones 2,5 -lr 1", sees_a_level_go_on_at(0.01, 0.01)),
    Row("--prune_rate 0.5", sees_the_prune_rate),
    Row("-pr .5", sees_the_prune_rate),
    Row("--prune_rate 0", sees_no_pruning),
    Row("--save {save}", lambda outcome: equal(outcome.run.path.parent, outcome.save)),
    Row("-s {save}", lambda outcome: equal(outcome.run.path.parent, outcome.save)),
    Row("--seed 0", sees_the_seed),
    Row("-rs 0", sees_the_seed),
    Row("--init_seed 0", lambda outcome: equal(outcome.configuration["init_seed"], 0)),
    Row("--order_seed 0", lambda outcome: equal(outcome.configuration["order_seed"], 0)),
    Row("--threads 2", sees_the_threads),
    Row("--checkpoint_seconds 0", lambda outcome: equal(outcome.configuration["checkpoint_seconds"], 0.0)),
]

# Flags whose effect is not one on a finished run; their tests are below and in the files named.
ELSEWHERE = {
    "gpu": "here",
    "augment": "here",
    "no_augment": "here",
    "dropout": "here",
    "branch": "tests/experiment/test_branch.py",
    "random": "tests/experiment/test_branch.py",
    "version": "here",
    "help": "here",
    "recover": "test_recover.py",
    "force": "test_recover.py",
    "quiet": "test_output.py",
}

ITERATIONS = ("2,1", "1,1", "-1", "1.5", "soon", "", "1,,2")
WRONG = {
    "preset": ("one of paper, openlth", ("papers", "", "none")),
    "fc_rate": ("a number >= 0 and <= 0.99", ("-0.1", "1", "20%", "nan", "")),
    "scope": ("one of layerwise, global", ("both", "")),
    "score": (
        f"one of {', '.join(SCORES)}",
        ("l1", "magnitudes", "s", "none", ""),
    ),
    "distribution": (f"one of {', '.join(DISTRIBUTIONS)}", ("er-k", "global", "")),
    "whole": ("some of output, shortcuts", ("input", "", "output,")),
    "branch": ("one of ticket, reinit, random_mask", ("r", "lottery", "")),
    "init": (
        "glorot, kaiming, openlth, orthogonal or normal:SIGMA",
        ("xavier", "normal", "normal:0", "normal:x", "glorot:1", ""),
    ),
    "count": ("one of nearest, openlth", ("ceil", "")),
    "keep": ("iterations", (*ITERATIONS, "7")),
    "dropout": ("a number >= 0 and <= 0.99", ("-0.1", "1", "half", "")),
    "momentum": ("a number >= 0 and <= 0.999", ("-0.1", "1", "much", "")),
    "weight_decay": ("a number >= 0", ("-0.1", "nan", "some", "")),
    "milestones": ("iterations", ITERATIONS),
    "warmup": ("a whole number >= 0", ("-1", *WHOLE_NUMBERS)),
    "plan": ("auto, masked, sparse, or the folder of a run that holds a plan", ("dense", "", "no/such/run")),
    "precision": ("one of float32, tf32, bf16", ("float64", "half", "")),
    "validation": ("a number of images", ("-1", "1.5", "-0.5", "nan", "some", "")),
    "batch_size": (f"a whole number >= 1 and <= {2**63 - 1}", ("0", "-1", f"{2**63}", *WHOLE_NUMBERS)),
    "optim": ("an optimizer of torch.optim", ("adm", "ada", "lbfgs", "")),
    "learn_rate": ("a number > 0", ("0", "-0.1", "nan", "inf", "fast", "")),
    "iter": ("a whole number >= 1", ("0", "-1", *WHOLE_NUMBERS)),
    "rounds": ("a whole number >= 0", ("-1", *WHOLE_NUMBERS)),
    "replicates": ("a whole number >= 1", ("0", "-1", *WHOLE_NUMBERS)),
    "step": ("a whole number >= 1 or -1", ("0", "-2", *WHOLE_NUMBERS)),
    "rewind": ("an iteration", ("-1", "1.5", "-0.5", "nan", "inf", "start", "", "6", "7", "0.99")),
    "retrain": ("one of weights, learn_rate, finetune", ("lr", "rewind", "")),
    "prune_rate": ("a number >= 0 and <= 0.99", ("-0.1", "1", "0.991", "20%", "nan", "")),
    "seed": ("a whole number >= 0", ("-1", *WHOLE_NUMBERS)),
    "init_seed": ("a whole number >= 0", ("-1", *WHOLE_NUMBERS)),
    "order_seed": ("a whole number >= 0", ("-1", *WHOLE_NUMBERS)),
    "threads": ("a whole number >= 1 and <= 1024", ("0", "-1", "1025", f"{2**31}", *WHOLE_NUMBERS)),
    "checkpoint_seconds": ("a number >= 0", ("-1", "nan", "inf", "often", "")),
    "data": ("a text that is not empty", ("",)),
    "save": ("a text that is not empty", ("",)),
}
# Flags without a value to be wrong, and --recover, whose value is the folder of a run (test_recover.py).
NO_VALUE = {
    *("gpu", "prune_global", "prune_bias", "random", "keep_optimizer", "nesterov", "augment", "no_augment"),
    *("version", "help", "recover", "force", "quiet"),
}


def long_flags():
    return {text[2:] for action in parser()._actions for text in action.option_strings if text.startswith("--")}


def spellings():
    return {text for action in parser()._actions for text in action.option_strings if text != "-h"}


def test_every_flag_of_the_parser_has_rows_in_both_tables():
    rows = {word for row in ROWS for word in row.given.split() if word.startswith("-") and not word[1:].isdigit()}
    assert rows | {f"--{name}" for name in ELSEWHERE} == spellings()
    assert set(WRONG) | NO_VALUE == long_flags()


def test_the_settings_of_a_run_are_flags_of_the_parser():
    negations = {f"no_{flag.name}" for flag in FLAGS if flag.negatable}
    assert {flag.name for flag in FLAGS} | negations | {"recover", "force", "quiet", "version", "help"} == long_flags()


@pytest.mark.parametrize("row", ROWS, ids=[row.given for row in ROWS])
def test_a_flag_has_its_effect_on_the_run(row, command, spied_steps, tmp_path, fake_mnist):
    save = tmp_path / "here"
    words = [word.format(data=fake_mnist, save=save) for word in row.given.split()]
    base = list(BASE)
    if words[-1] == "mnist":
        base[1] = words.pop()
    outcome = command(*base, *words, save=str(save) not in words)
    if str(save) in words:
        outcome.save = save
    assert outcome.code == 0, outcome.err
    row.seen(outcome)


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, (_, values) in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name_and_nothing_is_created(flag, value, command, tmp_path):
    given = (f"--{flag}={value}",) if value.startswith("-") else (f"--{flag}", value)
    outcome = command(*BASE, *given, save=flag != "save")
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: --{flag}: expected {WRONG[flag][0]}")
    assert line.endswith((f", got {value!r}", f", got {value}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", sorted(set(WRONG) | {"recover"}))
def test_a_flag_without_its_value_is_refused_by_name(flag, command, tmp_path):
    outcome = command(*BASE, f"--{flag}", save=False)
    assert outcome.code == 2
    assert f"--{flag}: expected one argument" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/runs", "a" * 300, "a\0b", "a\ud800b"])
def test_a_folder_that_cannot_be_made_is_refused(name, command, tmp_path):
    (tmp_path / "file").touch()
    outcome = command(*BASE, "--save", str(tmp_path / name), save=False)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: --save: expected a folder to write to, got")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_seeds_decide_their_part_of_the_randomness_and_no_other(command, spied_steps):
    def drawn(*flags):
        outcome = command(*BASE, *flags)
        initial = outcome.run.replicate(0).initial()
        return {
            "init": initial["classifier.fc1.weight"].tolist(),
            "order": [step.labels.tolist() for step in outcome.steps],
        }

    base = drawn()
    assert drawn("--seed", "1") == base
    other = drawn("--seed", "0")
    assert other["init"] != base["init"]
    assert other["order"] != base["order"]
    other_init = drawn("--init_seed", "0")
    assert other_init["init"] == other["init"]
    assert other_init["order"] == base["order"]
    other_order = drawn("--order_seed", "0")
    assert other_order["init"] == base["init"]
    assert other_order["order"] != base["order"]
    assert drawn("--init_seed", "1", "--order_seed", "1") == base


def test_without_a_seed_one_is_drawn_that_repeats_the_run(command, bits):
    seedless = BASE[:-2]
    first, second = command(*seedless), command(*seedless)
    assert first.configuration["sources"]["seed"] == "default"
    assert first.configuration["seed"] != second.configuration["seed"]
    again = command(*seedless, "--seed", str(first.configuration["seed"]))
    assert bits(again.run) == bits(first.run) != bits(second.run)


def test_checkpoints_are_as_far_apart_as_asked(command, monkeypatch):
    saved = []
    monkeypatch.setattr(Level, "save_checkpoint", lambda level, checkpoint: saved.append(checkpoint["iteration"]))
    command(*BASE, "--checkpoint_seconds", "0")
    assert saved
    saved.clear()
    command(*BASE, "--checkpoint_seconds", "1000")
    assert not saved


@pytest.mark.parametrize(("given", "expected"), [((), False), (("--augment",), True), (("--no-augment",), False)])
def test_the_training_images_are_augmented_where_asked(given, expected, command, monkeypatch):
    loaded = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args, **options: loaded.append(load(*args, **options)) or loaded[-1])
    assert command(*BASE, *given).code == 0
    assert loaded[0].train.augment is expected
    assert not loaded[0].test.augment


def test_augmentation_of_a_preset_can_be_switched_off():
    assert Config.resolve("resnet20", "cifar10", {}).augment
    assert not Config.resolve("resnet20", "cifar10", {"augment": False}).augment


def test_bf16_computes_near_what_float32_does_and_keeps_float32_weights(command, spied_steps):
    exact, coarse = command(*BASE), command(*BASE, "--precision", "bf16")
    assert coarse.steps[0].loss != exact.steps[0].loss
    assert coarse.steps[0].loss == pytest.approx(exact.steps[0].loss, rel=0.02)
    assert {value.dtype for value in coarse.steps[-1].state.values()} == {torch.float32}


def test_dropout_goes_to_the_network_and_is_refused_where_it_has_none(command):
    outcome = command("conv2", "digits", *BASE[2:], "--threads", "1", "--dropout", "0.25")
    assert outcome.code == 0, outcome.err
    assert "Dropout(p=0.25" in outcome.run.manifest()["model"]
    refused = command("torchvision:resnet18", "digits", *BASE[2:], "--dropout", "0.25")
    assert refused.code == 2
    assert "dropout" in refused.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_the_command_that_works_here_is_named(command, tmp_path, bits):
    outcome = command(*BASE, "--prune_bias", "--no_augment", "--gpu", "--precision", "tf32", "-lr", "0.1", "--quiet")
    assert outcome.code == 2
    assert not list(tmp_path.iterdir())
    message, _, named = outcome.err.strip().partition("; run on the CPU with: ")
    assert message == "error: --gpu: expected a CUDA device, found none"
    words = shlex.split(named)
    assert words[:3] == ["python", "-m", "lth_fast"]
    outcome.code = command(*words[3:], save=False).code
    assert outcome.code == 0
    assert bits(outcome.run) == bits(command(*BASE, "--prune_bias", "-lr", "0.1").run)


@pytest.mark.gpu
def test_with_a_gpu_the_run_is_there_and_repeats_bit_for_bit(command, bits):
    first, second = command(*BASE, "--gpu"), command(*BASE, "--gpu")
    assert first.run.manifest()["environment"]["device"] == torch.cuda.get_device_name()
    assert bits(first.run) == bits(second.run)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"lth_fast {__version__}\n"


def test_the_help_says_where_a_flag_takes_a_value(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "-p DATA, --data DATA" in text
    assert "-lr LEARN_RATE, --learn_rate LEARN_RATE" in text
    assert " ," not in text


def test_the_help_names_every_flag_network_and_data_set(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    networks = (*models.models, "lenet:500-200", "torchvision:resnet18", "module:function")
    for word in (*spellings(), *networks, *data.datasets):
        assert word in text


CHOICES = {
    "preset": presets,
    "scope": SCOPES,
    "score": SCORES,
    "distribution": DISTRIBUTIONS,
    "whole": (*ROLES, "none"),
    "branch": BRANCHES,
    "precision": PRECISIONS,
}


@pytest.mark.parametrize("flag", CHOICES)
def test_the_help_of_a_flag_names_everything_one_can_choose(flag):
    words = re.findall(r"\w+(?::\w+)?", BY_NAME[flag].help)
    assert set(CHOICES[flag]) <= set(words)


def test_the_help_tells_a_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    for entry in re.split(r"\n  -", capsys.readouterr().out):
        assert entry.count("default") <= 1, entry


def test_the_manifest_says_where_every_value_came_from(command):
    configuration = command(*BASE, "--learn_rate", "0.5").configuration
    sources = configuration["sources"]
    settings = {flag.name for flag in FLAGS if flag.stands_for is None}
    assert set(sources) == settings == set(configuration) - {"net", "dataset", "sources", "ticket"}
    assert sources["learn_rate"] == sources["iter"] == sources["save"] == "given"
    assert sources["optim"] == sources["batch_size"] == "preset"
    assert sources["order_seed"] == sources["gpu"] == "default"
    assert configuration["optim"] == "adam"
    assert configuration["batch_size"] == 60


def test_the_manifest_says_what_ran_where(command):
    run = command(*BASE).run
    manifest = json.loads((run.path / "meta.json").read_text())
    assert manifest == open_run(run.path).manifest()
    environment = manifest["environment"]
    assert {"torch", "numpy", "python", "cpu", "isa", "device", "threads", "lth_fast"} <= set(environment)
    assert environment["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["threads"] == 1
    assert manifest["stepper"] == {"name": "native", "refused": {"CUDA graph": "the training is on the CPU"}}
    assert manifest["net"] == "lenet-8"
    assert manifest["configuration"]["net"] == "lenet:8"
    assert manifest["configuration"]["dataset"] == manifest["dataset"] == "digits"


@pytest.mark.parametrize(
    ("glued", "setting", "value"),
    [
        ("-pr0.5", "prune_rate", 0.5),
        ("-rs0", "seed", 0),
        ("-rw4", "rewind", 4),
        ("-es-1", "step", -1),
        ("-r3", "rounds", 3),
    ],
)
def test_a_value_glued_to_a_short_flag_is_that_flags(glued, setting, value, command):
    outcome = command(*BASE, glued)
    assert outcome.code == 0, outcome.err
    assert outcome.configuration[setting] == value
