"""A linear layer 4096 to 4096 on a GPU, batch 512, float32: forward, backward and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedLinear, SparseLinear
from lth_fast.optim import Adam, gradients_masked_by

from ..alternation import alternate
from .sides import finished, record_kernels

SIZE, BATCH, STEPS = 4096, 512, 20


def layer_and_mask(device: torch.device, density: float) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(SIZE, SIZE, device=device), torch.rand(SIZE, SIZE, device=device) < density


def steps(layer: nn.Module, device: torch.device, ours: bool) -> Callable[[], None]:
    """STEPS steps of Adam, of this package's as its steppers take them, or of torch's fused one."""
    parameters = list(layer.parameters())
    optimizer = Adam(parameters, lr=1e-3) if ours else torch.optim.Adam(parameters, lr=1e-3, fused=True)
    inputs = torch.randn(BATCH, SIZE, device=device, requires_grad=True)
    grads = torch.randn(BATCH, SIZE, device=device)

    def take_steps() -> None:
        with gradients_masked_by(optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                inputs.grad = None
                layer(inputs).backward(grads)
                optimizer.step()

    return finished(take_steps)


def test_the_mask_costs_at_most_three_percent(benchmark, device):
    layer, mask = layer_and_mask(device, 0.5)
    dense = steps(layer_and_mask(device, 1.0)[0], device, ours=False)
    masked = steps(MaskedLinear.from_dense(layer, mask), device, ours=True)
    dense()
    result = alternate(benchmark, masked, dense)
    record_kernels(benchmark, masked, STEPS)
    benchmark.extra_info.update(bar=1 / 1.03, note=f"mask cost {100 * (1 / result.ratio - 1):.1f} %")
    assert result.reaches(1 / 1.03), f"{1 / result.ratio:.3f} times the dense step, expected at most 1.03"


def test_what_the_mask_of_stock_pruning_costs(benchmark, device):
    layer, mask = layer_and_mask(device, 0.5)
    masked = steps(MaskedLinear.from_dense(layer, mask), device, ours=True)
    other, _ = layer_and_mask(device, 0.5)
    stock.custom_from_mask(other, "weight", mask)
    pruned = steps(other, device, ours=False)
    pruned()
    result = alternate(benchmark, masked, pruned)
    assert result.ours > 0


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05, 0.01])
def test_the_sparse_form_is_twice_as_fast_as_dense_at_a_twentieth(benchmark, device, density):
    layer, mask = layer_and_mask(device, density)
    sparse = steps(SparseLinear.from_dense(layer, mask), device, ours=True)
    sparse()
    dense = steps(layer_and_mask(device, 1.0)[0], device, ours=False)
    dense()
    result = alternate(benchmark, sparse, dense)
    record_kernels(benchmark, sparse, STEPS)
    if density == 0.05:
        benchmark.extra_info.update(bar=2.0)
        assert result.reaches(2.0), f"{result.ratio:.2f} times as fast as dense, expected at least 2"
