"""Networks, data sets and flags by name, as people type them."""

from __future__ import annotations

import shlex

import pytest

from lth_fast import data, models

SMALL = "--iter 2 --rounds 0 --seed 1"


@pytest.mark.parametrize(
    "typed",
    [
        "lenet:8 digits --batch_size 500",
        "lenet:8 digits --batch-size 500",
        "LeNet:8 DIGITS --BATCH_SIZE 500",
        "len:8 dig --batch 500",
        "lenet:8 digits --Batch-S=500",
        "--batch_size 500 lenet:8 digits",
        "lenet:8 --batch_size 500 digits",
    ],
)
def test_any_case_dashes_unambiguous_beginnings_and_any_place_are_understood(typed, command):
    outcome = command(*shlex.split(f"{typed} {SMALL}"))
    assert outcome.code == 0, outcome.err
    configuration = outcome.configuration
    assert (configuration["net"], configuration["dataset"], configuration["batch_size"]) == ("lenet:8", "digits", 500)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lenett digits", "unknown network 'lenett'; did you mean lenet? (known: "),
        ("resnet19 cifar10", "unknown network 'resnet19'; did you mean resnet"),
        ("xyz digits", "unknown network 'xyz' (known: "),
        ("e digits", "unknown network 'e' (known: "),
        ("vgg digits", "network 'vgg' is ambiguous: it could be vgg11, vgg13, vgg16, vgg19"),
        ("lenet digit5", "unknown data set 'digit5'; did you mean digits? (known: "),
        ("lenet cifar", "data set 'cifar' is ambiguous: it could be cifar10, cifar100"),
        ("lenet digits --iters 3", "unknown flag '--iters'; did you mean --iter? (known: --"),
        ("lenet digits --learning_rate 3", "unknown flag '--learning_rate'; did you mean --learn_rate? (known: --"),
        ("lenet digits --re 3", "flag '--re' is ambiguous: it could be --recover, --replicates, --retrain, --rewind"),
        ("lenet digits -x 3", "unrecognized arguments: -x 3"),
        ("lenet digits mnist", "unrecognized arguments: mnist"),
        ("", "expected a network and a data set: python -m lth_fast NET DATASET, e.g. "),
        ("lenet", "expected a data set: python -m lth_fast NET DATASET, e.g. "),
    ],
)
def test_what_is_not_understood_is_named_beside_what_exists(typed, expected, command, tmp_path):
    outcome = command(*typed.split())
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_all_that_exist(command):
    error = command("nothing", "digits").err
    assert all(name in error for name in models.models)
    error = command("lenet", "nothing").err
    assert all(name in error for name in data.datasets)


def test_no_name_lists_all_that_exist(command):
    error = command().err
    assert all(name in error for name in (*models.models, *data.datasets))
