"""A whole training step of a sparse VGG-16 on CIFAR-10, as the loop takes it, against the dense network's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.data import ResidentLoader
from lth_fast.nn import convert
from lth_fast.optim import SGD
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, ResidentBatches

from .alternation import check_bars, take_turns_with_one
from .layers import exact_mask
from .test_network_step import cifar

BARS = {0.1: 2.0, 0.02: 3.0}
SETTINGS: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}


def dense(train: ResidentLoader) -> EagerStepper:
    model = models.build("vgg16", (3, 32, 32), generator=torch.Generator().manual_seed(0))
    return stepper(model, torch.optim.SGD(model.parameters(), **SETTINGS, fused=True), train)


def sparse(train: ResidentLoader, density: float) -> EagerStepper:
    model = models.build("vgg16", (3, 32, 32), generator=torch.Generator().manual_seed(0))
    masks = {name: exact_mask(layer.weight.shape, density) for name, layer in prunable(model).items()}
    convert(model, masks, example_input=torch.zeros(64, 3, 32, 32))
    return stepper(model, SGD(model.parameters(), **SETTINGS), train)


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, train: ResidentLoader) -> EagerStepper:
    batches = ResidentBatches(train, lambda epoch: epoch, lambda epoch: epoch)
    return EagerStepper(model, optimizer, nn.CrossEntropyLoss(), batches)


@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_step(benchmark: Any, threads: int) -> None:
    train, data_used = cifar(64, augment=True)
    ours = {f"density {density}": partial(sparse(train, density).advance, 1) for density in BARS}
    results = take_turns_with_one(benchmark, ours, partial(dense(train).advance, 1), warm_up=False)
    benchmark.extra_info.update(threads=threads, data=data_used)
    check_bars(benchmark, results, {f"density {density}": bar for density, bar in BARS.items()})
