"""A whole training step of a sparse VGG-16 on CIFAR-10, as the loop takes it, against the dense network's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.nn import convert
from lth_fast.optim import SGD
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, ResidentBatches

from .alternation import alternate
from .layers import exact_mask
from .test_network_step import cifar

BARS = {0.1: 2.0, 0.02: 3.0}


@pytest.mark.parametrize("density", BARS)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_step(benchmark: Any, threads: int, density: float) -> None:
    train, data_used = cifar(64, augment=True)
    steppers = []
    for kept in (density, None):
        model = models.build("vgg16", (3, 32, 32), generator=torch.Generator().manual_seed(0))
        optimizer: torch.optim.Optimizer
        if kept is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
        else:
            masks = {name: exact_mask(layer.weight.shape, kept) for name, layer in prunable(model).items()}
            convert(model, masks, example_input=torch.zeros(64, 3, 32, 32))
            optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        batches = ResidentBatches(train, lambda epoch: epoch, lambda epoch: epoch)
        steppers.append(EagerStepper(model, optimizer, nn.CrossEntropyLoss(), batches))
    sparse, dense = steppers
    result = alternate(benchmark, lambda: sparse.advance(1), lambda: dense.advance(1))
    benchmark.extra_info.update(threads=threads, density=density, data=data_used, bar=BARS[density])
    assert result.reaches(BARS[density]), f"{result.ratio:.2f} times faster, expected {BARS[density]}"
