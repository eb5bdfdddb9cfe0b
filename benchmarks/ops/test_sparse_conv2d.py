"""SparseConv2d against nn.Conv2d and torch.nn.utils.prune, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.alternation import alternate
from lth_fast.nn import SparseConv2d

# Times faster than dense, per density.
BARS = {0.2: 1.7, 0.1: 2.8, 0.05: 4.5}
# Channels → size of the square maps.
LAYERS = {64: 32, 128: 16, 256: 8, 512: 4}


@pytest.fixture(autouse=True)
def denormals_flushed_on_both_sides() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def training_pass(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Forward and backward; gradients are dropped, as an optimizer's zero_grad does."""

    def work() -> None:
        layer(inputs).backward(gradient)
        inputs.grad = None
        layer.zero_grad()

    return work


@pytest.mark.parametrize("rival", ["dense", "stock_prune"])
@pytest.mark.parametrize("density", BARS)
@pytest.mark.parametrize("channels", LAYERS)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_3x3_forward_and_backward(benchmark: Any, threads: int, channels: int, density: float, rival: str) -> None:
    dense = nn.Conv2d(channels, channels, 3, padding=1)
    mask = torch.rand(dense.weight.shape) < density
    sparse = SparseConv2d.from_dense(dense, mask)
    if rival == "stock_prune":
        prune.custom_from_mask(dense, "weight", mask)
    inputs = torch.randn(64, channels, LAYERS[channels], LAYERS[channels], requires_grad=True)
    gradient = torch.randn_like(inputs)
    result = alternate(benchmark, training_pass(sparse, inputs, gradient), training_pass(dense, inputs, gradient))
    benchmark.extra_info.update(threads=threads, density=density)
    if rival == "dense":
        benchmark.extra_info["bar"] = BARS[density]
        assert result.reaches(BARS[density])
    assert result.ours > 0


@pytest.mark.parametrize("density", BARS)
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [
        ((64, 256), 16, 1, 1),
        ((256, 64), 16, 1, 1),
        ((128, 128), 16, 3, 2),
        ((256, 512), 8, 1, 2),
        ((512, 512), 2, 3, 1),
    ],
    ids=["1x1_64_to_256", "1x1_256_to_64", "3x3_stride_2", "1x1_stride_2", "3x3_maps_of_2"],
)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_other_convolutions_of_resnet_and_vgg(
    benchmark: Any, threads: int, channels: tuple[int, int], size: int, kernel: int, stride: int, density: float
) -> None:
    dense = nn.Conv2d(*channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    sparse = SparseConv2d.from_dense(dense, torch.rand(dense.weight.shape) < density)
    inputs = torch.randn(64, channels[0], size, size, requires_grad=True)
    gradient = torch.randn_like(dense(inputs))
    result = alternate(benchmark, training_pass(sparse, inputs, gradient), training_pass(dense, inputs, gradient))
    benchmark.extra_info.update(threads=threads, density=density)
    assert result.ours > 0
