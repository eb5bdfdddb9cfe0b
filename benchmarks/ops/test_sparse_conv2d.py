"""Convolutions of ResNet and VGG that are not 3x3 with stride 1, forward and backward, sparse against dense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.alternation import alternate
from benchmarks.layers import training_pass
from lth_fast.nn import SparseConv2d

DENSITIES = (0.2, 0.1, 0.05)


@pytest.fixture(autouse=True)
def denormals_flushed_on_both_sides() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.long
@pytest.mark.parametrize("density", DENSITIES)
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
