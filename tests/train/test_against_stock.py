"""Training under our masks against a hand-written loop over torch.nn.utils.prune, which is slow and beyond doubt."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast import _C, data, models
from lth_fast.nn import set_masks
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, ResidentBatches, Seeds

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1.2e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
}


def batches_of(train):
    seeds = Seeds(1)
    return ResidentBatches(
        train, lambda epoch: seeds.stream("order", part=epoch), lambda epoch: seeds.stream("noise", part=epoch + 1)
    )


@dataclass(frozen=True)
class Comparison:
    """Losses of so many steps differ by no more than ``tolerance`` and end below ``learned`` times the first one."""

    steps: int
    tolerance: float
    learned: float


@pytest.fixture(params=["mkl", "onednn"])
def comparison(request):
    """By stock's own library each of our steps is stock's. The other one rounds otherwise, which grows step by step."""
    previous = _C.prefers_onednn()
    _C.force_onednn(request.param == "onednn")
    yield Comparison(200, 1e-5, learned=0.8) if request.param == "mkl" else Comparison(20, 1e-4, learned=1.0)
    _C.force_onednn(previous)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").train


@pytest.fixture(scope="module")
def mnist(data_root):
    return data.load("mnist", data_root).train


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("dataset", ["digits", pytest.param("mnist", marks=pytest.mark.real_data)])
def test_lenet_trains_like_stock_pruning_does(dataset, density, optimizer, request, comparison):
    compare_with_stock(comparison, "lenet", request.getfixturevalue(dataset), density, OPTIMIZERS[optimizer])


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_conv2_trains_like_stock_pruning_does(density, digits, comparison):
    compare_with_stock(comparison, "conv2", digits, density, OPTIMIZERS["adam"])


def compare_with_stock(comparison, net, train, density, make_optimizer):
    generator = torch.Generator().manual_seed(int(density * 10))
    plain = models.build(net, train.input_shape, generator=generator)
    masks = {
        name: torch.rand(layer.weight.shape, generator=generator) < density for name, layer in prunable(plain).items()
    }

    ours = set_masks(copy.deepcopy(plain), masks)
    stepper = EagerStepper(ours, make_optimizer(ours.parameters()), nn.CrossEntropyLoss(), batches_of(train))
    losses = stepper.advance(comparison.steps)

    theirs = copy.deepcopy(plain)
    for name, mask in masks.items():
        stock.custom_from_mask(theirs.get_submodule(name.removesuffix(".weight")), "weight", mask)
    torch_optimizer = make_optimizer(theirs.parameters())
    batches = batches_of(train)
    expected = torch.empty(comparison.steps)
    for step in range(comparison.steps):
        inputs, labels = batches.next()
        torch_optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(inputs), labels)
        loss.backward()
        torch_optimizer.step()
        expected[step] = loss.detach()

    assert math.isfinite(float(expected.sum()))
    assert expected[-1] < comparison.learned * expected[0]  # it learned: the comparison is not one of two idle loops
    torch.testing.assert_close(losses, expected, rtol=comparison.tolerance, atol=0)
