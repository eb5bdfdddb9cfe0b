"""Global magnitude pruning of ResNet-50's 25.6 M weights on a GPU: against a copy of them and against stock pruning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.ops import prune_by_magnitude

from ..alternation import alternate
from .sides import finished, record_kernels

SHARE, REPEAT = 0.2, 10


@pytest.fixture
def weights(device: torch.device) -> list[Tensor]:
    """161 tensors of torchvision's shapes, normal values of a scale per tensor."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in torchvision.models.resnet50().parameters()]
    torch.manual_seed(0)
    return [torch.randn(shape, device=device) * float(0.001 + 0.1 * torch.rand(())) for shape in shapes]


def test_threshold_and_masks_take_at_most_three_copies(benchmark, weights):
    k = int(SHARE * sum(weight.numel() for weight in weights))
    flat = torch.cat([weight.flatten() for weight in weights])
    target = torch.empty_like(flat)
    result = alternate(
        benchmark,
        finished(lambda: prune_by_magnitude(weights, k), REPEAT),
        finished(lambda: target.copy_(flat), REPEAT),
    )
    record_kernels(benchmark, finished(lambda: prune_by_magnitude(weights, k), REPEAT), REPEAT)
    benchmark.extra_info.update(bar=1 / 3, note=f"{1 / result.ratio:.2f} copies, {1e6 * result.ours / REPEAT:.0f} µs")
    assert result.reaches(1 / 3), f"{1 / result.ratio:.2f} device-to-device copies, expected at most 3"


def test_it_is_ten_times_as_fast_as_stock_global_unstructured(benchmark, weights):
    k = int(SHARE * sum(weight.numel() for weight in weights))

    def stock_pruning() -> None:
        modules = [nn.Module() for _ in weights]
        for module, weight in zip(modules, weights, strict=True):
            module.weight = nn.Parameter(weight)
        stock.global_unstructured([(module, "weight") for module in modules], stock.L1Unstructured, amount=SHARE)

    result = alternate(benchmark, finished(lambda: prune_by_magnitude(weights, k)), finished(stock_pruning), rounds=9)
    benchmark.extra_info.update(bar=10.0)
    assert result.reaches(10.0), f"{result.ratio:.1f} times as fast, expected at least 10"
