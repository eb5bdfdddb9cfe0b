"""The same command gives the same bits, in another process too."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lth_fast import load_run
from lth_fast.experiment.build import build_experiment
from lth_fast.experiment.config import Config


def in_a_process_of_its_own(arguments, save):
    subprocess.run(
        [sys.executable, "-m", "lth_fast", *arguments, "--quiet", "--save", str(save)], check=True, timeout=600
    )
    (path,) = save.iterdir()
    return load_run(path).run


@pytest.mark.parametrize(
    "arguments",
    [
        "lenet digits --iter 100 --rounds 2 --seed 1",
        "conv2 digits --iter 4 --rounds 1 --rewind 2 --seed 2 --threads 1 --batch_size 20 -o sgd -es 2",
    ],
)
def test_the_same_command_twice_gives_the_same_bits(arguments, command, bits, tmp_path):
    here = command(*arguments.split()).run
    assert bits(in_a_process_of_its_own(arguments.split(), tmp_path / "elsewhere")) == bits(here)


def test_another_seed_gives_other_bits(command, bits):
    runs = [command("lenet:8", "digits", "--iter", "5", "--rounds", "1", "--seed", seed).run for seed in "12"]
    assert bits(runs[0]) != bits(runs[1])


def test_the_validation_set_follows_the_seed_and_no_other():
    def validation(**seeds):
        config = Config.resolve("lenet:8", "digits", seeds)
        return build_experiment(config).loaders.validation.images

    images = validation(seed=1)
    assert not torch.equal(images, validation(seed=2))
    assert torch.equal(images, validation(seed=1, init_seed=2, order_seed=3))


@pytest.mark.real_data
def test_the_same_command_twice_gives_the_same_bits_on_mnist(command, bits, data_root, tmp_path):
    arguments = ["lenet", "mnist", "--data", str(data_root), "--iter", "300", "--rounds", "2", "--seed", "1"]
    here = command(*arguments)
    assert here.level(2).summary()["test_accuracy"] > 0.9
    assert bits(in_a_process_of_its_own(arguments, tmp_path / "elsewhere")) == bits(here.run)


@pytest.mark.long
@pytest.mark.real_data
def test_a_thousand_iterations_of_mnist_in_two_processes_give_the_same_bits(bits, data_root, tmp_path):
    arguments = ["lenet", "mnist", "--data", str(data_root), "--iter", "1000", "--rounds", "3", "--seed", "1"]
    one, other = (in_a_process_of_its_own(arguments, tmp_path / name) for name in ("one", "other"))
    assert bits(one) == bits(other)
