"""Networks beside LeNet, from the command line: on genuine data, and rewound in the middle of their schedule."""

from __future__ import annotations

import sys

import pytest
import torch

from lth_fast import data
from lth_fast.train import ResidentBatches, Seeds

SHORT = ("--iter", "20", "--rounds", "2", "--seed", "1", "--batch_size", "8", "--threads", "1")


def first(loader, count):
    """The first ``count`` images of a resident loader."""
    return data.ResidentLoader(
        loader.images[:count],
        loader.labels[:count],
        name=loader.name,
        classes=loader.classes,
        mean=loader.mean,
        std=loader.std,
        scale=loader.scale,
        batch_size=loader.batch_size,
    )


@pytest.fixture
def little_evaluation(monkeypatch):
    """Train on all of a data set and evaluate on 500 images: these networks would spend minutes on 15,000."""
    load = data.load

    def loaded(*arguments, **options):
        train, validation, test = load(*arguments, **options)
        return data.DataSplits(train, first(validation, 500), first(test, 500))

    monkeypatch.setattr(data, "load", loaded)


@pytest.mark.real_data
@pytest.mark.usefixtures("little_evaluation")
@pytest.mark.parametrize(
    "words",
    [
        ("lenet", "cifar10"),
        ("conv2", "mnist"),
        ("vgg11", "digits"),
        ("resnet20", "cifar10", "--augment"),
        ("torchvision:resnet18", "cifar10"),
    ],
    ids=" ".join,
)
def test_a_network_trains_for_twenty_iterations_and_is_pruned_twice(words, command, data_root):
    outcome = command(*words, *SHORT, "--data", str(data_root))
    assert outcome.code == 0, outcome.err
    densities = [outcome.level(number).summary()["density"] for number in range(3)]
    assert densities[0] == 1 > densities[1] > densities[2] > 0.5
    for number in range(3):
        log = outcome.level(number).log.read()
        assert log["iteration"][-1] == 20
        assert (log["train_loss"] == log["train_loss"]).all()
        weights, masks = outcome.level(number).weights("end"), outcome.level(number).masks()
        assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())


ZOO = """
import torch
from torch import nn

class Noisy(nn.Linear):
    def forward(self, images):
        assert not self.training or torch.is_grad_enabled()
        return super().forward(images.flatten(1)) + torch.rand(())

def fits():
    return nn.Sequential(Noisy(64, 12))

def another_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def too_few_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))

def a_pair():
    class Pair(nn.Linear):
        def forward(self, images):
            return super().forward(images.flatten(1)), None
    return Pair(64, 10)

def a_number():
    return 3

def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), Product())

class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(64, 10))

    def forward(self, images):
        return images @ self.factor

def frozen():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)

def one_layer():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def normalised():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))

def fails():
    class Fails(nn.Linear):
        def forward(self, images):
            if self.training:
                raise RuntimeError("in training")
            return super().forward(images.flatten(1))
    return Fails(64, 10)

def divides(classes):
    assert classes == 16, "classes should be\\n16"

def dislikes(classes):
    raise ValueError("no such number of classes")

def needs_more(depth):
    return nn.Linear(64, 10)
"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "a_small_zoo.py").write_text(ZOO)
    monkeypatch.syspath_prepend(folder)
    yield "a_small_zoo"
    sys.modules.pop("a_small_zoo", None)


LOGITS = "expected one that maps images [2, 1, 8, 8] of digits to logits [2, 10], got"
BUILT = "expected one that can be built for images [1, 8, 8] of digits"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("another_size", f"network a_small_zoo:another_size: {LOGITS} RuntimeError: mat1 and mat2 shapes cannot be"),
        ("too_few_outputs", f"network a_small_zoo:too_few_outputs: {LOGITS} [2, 9]"),
        ("a_pair", f"network a_small_zoo:a_pair: {LOGITS} tuple"),
        (
            "nothing_to_prune",
            "network a_small_zoo:nothing_to_prune: expected one with Linear or Conv2d layers, which are pruned",
        ),
        ("frozen", "network a_small_zoo:frozen: expected parameters to train, got none that requires a gradient"),
        ("divides", f"network a_small_zoo:divides: {BUILT}, got AssertionError: classes should be 16"),
        ("dislikes", "network 'a_small_zoo:dislikes': no such number of classes"),
        ("a_number", "network 'a_small_zoo:a_number': expected the function to return an nn.Module, got int"),
        ("needs_more", "network 'a_small_zoo:needs_more': needs_more() missing 1 required positional argument: 'dep"),
    ],
)
def test_a_network_of_ones_own_that_does_not_fit_is_refused_in_a_line_and_nothing_is_created(
    function, message, command, zoo
):
    outcome = command(f"{zoo}:{function}", "digits", *SHORT)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not outcome.save.exists()


def test_flags_that_keep_every_layer_whole_are_refused_before_a_level_is_trained(command, zoo):
    outcome = command(f"{zoo}:one_layer", "digits", *SHORT, "--scope", "global")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: --whole: expected to leave layers of a_small_zoo:one_layer to prune, got output, which are all; "
        "--whole none prunes them"
    ]
    assert not outcome.save.exists()
    assert command(f"{zoo}:one_layer", "digits", *SHORT, "--scope", "global", "--whole", "none").code == 0


def test_a_last_batch_of_one_image_is_refused_where_a_network_cannot_be_trained_on_it(command, zoo):
    outcome = command(f"{zoo}:normalised", "digits", *SHORT, "--batch_size", "16")  # 1,297 images
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(
        "error: --batch_size: expected one that leaves no batch of a single image, on which a_small_zoo:normalised "
        "cannot be trained, got 16 for 1297 images (ValueError: Expected more than 1 value per channel"
    )
    assert not outcome.save.exists()
    assert command(f"{zoo}:normalised", "digits", *SHORT, "--batch_size", "17").code == 0
    assert command(f"{zoo}:one_layer", "digits", *SHORT, "--batch_size", "16").code == 0
    assert "in training" in command(f"{zoo}:fails", "digits", *SHORT, "--batch_size", "16").err  # of one or more


def test_images_too_small_for_a_network_of_torchvision_are_refused_in_a_line(command):
    pytest.importorskip("torchvision")
    outcome = command("torchvision:alexnet", "digits", *SHORT)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: network torchvision:alexnet: {LOGITS} RuntimeError: ")
    assert not outcome.save.exists()


def test_a_network_that_does_not_fit_into_the_memory_is_refused_in_a_line(command):
    outcome = command("lenet:999999999999", "digits", *SHORT)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: network lenet:999999999999: {BUILT}, got RuntimeError: ")
    assert not outcome.save.exists()


def test_a_training_that_fails_shows_where_and_says_how_to_go_on(command, zoo):
    outcome = command(f"{zoo}:fails", "digits", *SHORT)
    assert outcome.code == 1
    assert "a_small_zoo.py" in outcome.err
    assert outcome.err.splitlines()[-1] == (
        f"error: in training; go on with: python -m lth_fast --recover '{outcome.run.path}'"
    )


def test_finding_out_whether_a_network_fits_leaves_no_trace(command, zoo):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    outcome = command(f"{zoo}:fits", "digits", *SHORT)
    assert outcome.code == 0, outcome.err
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rewound_resnet_goes_on_with_the_learning_rate_and_the_data_order_of_that_point(command, spied_steps):
    flags = ("--iter", "6", "--rewind", "3", "--rounds", "1", "--milestones", "2,5", "--batch_size", "16")
    outcome = command("resnet20", "digits", *flags, "--seed", "1", "--threads", "1")
    assert outcome.code == 0, outcome.err
    pruned = [step for step in outcome.steps if step.level == 1]
    assert [step.iteration for step in pruned] == [4, 5, 6]
    assert [step.rates[0] for step in pruned] == pytest.approx([0.01, 0.01, 0.001])
    seeds = Seeds(1)
    train = data.load("digits", train_batch_size=16, split_seed=seeds.stream("split")).train
    order = ResidentBatches(train, lambda epoch: seeds.stream("order", 0, 1, epoch), lambda epoch: 0)
    order.start(3)
    for step in pruned:
        assert torch.equal(step.labels, order.next()[1])


def test_a_deep_network_without_rewinding_is_warned_about_once(command):
    outcome = command("resnet20", "digits", "--iter", "1", "--rounds", "0", "--rewind", "0", "--threads", "1")
    warnings = [line for line in outcome.err.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "without rewinding" in warnings[0]
    assert "WARNING" not in command("lenet:8", "digits", "--iter", "1", "--rounds", "0").err
