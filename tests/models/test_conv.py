"""Conv-2, Conv-4, Conv-6."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast import models


@pytest.mark.parametrize(
    ("name", "conv", "total"),
    [("conv2", 38_592, 4_300_992), ("conv4", 259_776, 2_425_024), ("conv6", 1_144_512, 2_261_184)],
)
def test_weights_on_cifar10_are_those_of_the_paper(name: str, conv: int, total: int) -> None:
    model = models.build(name, (3, 32, 32))
    in_convolutions = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    in_linear_layers = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert in_convolutions == conv
    assert in_convolutions + in_linear_layers == total


@pytest.mark.parametrize(("name", "depth"), [("conv2", 2), ("conv4", 4), ("conv6", 6)])
def test_convolutions_come_in_pairs_of_64_128_256_channels_before_256_256_classes(name: str, depth: int) -> None:
    model = models.build(name, (3, 8, 8), 4)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 64, 128, 128, 256, 256][:depth]
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in convolutions)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [256, 256, 4]


def test_every_layer_but_the_last_is_followed_by_relu() -> None:
    layers = [m for m in models.build("conv6", (1, 8, 8)).modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.ReLU))]
    assert [isinstance(layer, nn.ReLU) for layer in layers] == [False, True] * 8 + [False]


def test_conv2_computes_conv_relu_conv_relu_pool_and_the_linear_layers() -> None:
    model = models.build("conv2", (1, 5, 4), 3, generator=torch.Generator().manual_seed(0))
    x = images = torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(1))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in convolutions:
        x = layer(x).clamp(min=0)
    x = nn.functional.max_pool2d(x, 2).reshape(2, 64 * 2 * 2)
    for layer in linear[:2]:
        x = layer(x).clamp(min=0)
    torch.testing.assert_close(model(images), linear[2](x))


def test_dropout_sits_between_the_linear_layers() -> None:
    layers = [m for m in models.build("conv2", dropout=0.4).modules() if isinstance(m, (nn.Linear, nn.Dropout))]
    assert [isinstance(layer, nn.Dropout) for layer in layers] == [False, True, False, True, False]
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.4}


@pytest.mark.parametrize(("name", "side"), [("conv2", 2), ("conv4", 4), ("conv6", 8)])
def test_the_smallest_image_leaves_one_pixel_and_a_smaller_one_is_refused(name: str, side: int) -> None:
    assert models.build(name, (1, side, side))(torch.zeros(2, 1, side, side)).shape == (2, 10)
    with pytest.raises(
        ValueError, match=rf"input_shape: .* needs at least {side} x {side} pixels, got \(1, {side}, {side - 1}\)"
    ):
        models.build(name, (1, side, side - 1))
