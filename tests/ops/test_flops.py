"""What ``torch.utils.flop_counter`` counts for the operators."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lth_fast.ops.flops  # noqa: F401  registers the formulas
from lth_fast.nn import convert


def counted(model: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward()
    return counter.get_total_flops()


LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (3, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 9, 8)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_masked_layers_count_as_dense_ones_and_sparse_ones_by_their_survivors(make, shape):
    dense = nn.Sequential(make())
    inputs = torch.randn(shape, requires_grad=True)
    survivors = 12
    mask = (torch.arange(dense[0].weight.numel()) < survivors).view(dense[0].weight.shape)
    masked, sparse = (convert(copy.deepcopy(dense), {"0.weight": mask}, form) for form in ("masked", "sparse"))
    whole = counted(dense, inputs)
    assert whole > 0
    assert counted(masked, inputs) == whole
    assert counted(sparse, inputs) * mask.numel() == whole * survivors


@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_a_gradient_that_nobody_asks_for_is_not_counted(form):
    model = nn.Sequential(nn.Linear(12, 8), nn.Conv2d(2, 4, 3))
    convert(model, {"0.weight": torch.ones(8, 12) > 0, "1.weight": torch.ones(4, 2, 3, 3) > 0}, form)
    images = torch.randn(3, 2, 5, 12)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    linear, convolution = 2 * 3 * 2 * 5 * 12 * 8, 2 * 3 * 3 * 6 * 4 * 2 * 3 * 3
    assert counter.get_total_flops() == 2 * linear + 3 * convolution


def test_the_package_does_not_import_the_counter_and_what_it_brings_along():
    found = "import sys, lth_fast; print('torch.utils.flop_counter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True).stdout == "False\n"
