"""Residual networks for CIFAR."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.models.resnet import Block, ResNet


def weights(model: nn.Module, keep=lambda name: True) -> int:
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return sum(m.weight.numel() for name, m in layers if keep(name))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("resnet20", 270_896),
        ("resnet32", 464_432),
        ("resnet44", 657_968),
        ("resnet56", 851_504),
        ("resnet110", 1_722_416),
    ],
)
def test_weights_on_cifar10(name: str, total: int) -> None:
    assert weights(models.build(name, (3, 32, 32))) == total


@pytest.mark.parametrize("name", [name for name in models.models if name.startswith("resnet")])
def test_the_number_in_the_name_counts_convolutions_and_output_layer_without_shortcuts(name: str) -> None:
    model = models.build(name)
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(set(layers) - set(models.shortcut_layers(model))) == int(name.removeprefix("resnet"))


def test_resnet20_has_267696_weights_in_its_3x3_convolutions() -> None:
    model = models.build("resnet20", (3, 32, 32))
    kept = {models.output_layer(model), *models.shortcut_layers(model)}
    assert weights(model, keep=lambda name: name not in kept) == 267_696
    assert weights(model, keep=kept.__contains__) == 64 * 10 + 16 * 32 + 32 * 64


@pytest.mark.parametrize(("level", "percent"), [(4, 41.7), (6, 27.1), (7, 21.9), (10, 11.8)])
def test_resnet20_has_the_densities_of_the_paper_when_output_and_shortcuts_are_kept(level: int, percent: float) -> None:
    model = models.build("resnet20", (3, 32, 32))
    kept = {models.output_layer(model), *models.shortcut_layers(model)}
    remaining = weights(model, keep=lambda n: n not in kept) * 0.8**level + weights(model, keep=kept.__contains__)
    assert round(100 * remaining / weights(model), 1) == percent


def test_stages_halve_the_image_and_double_the_channels() -> None:
    model = models.build("resnet20", (3, 32, 32))
    x = model.conv1(torch.zeros(1, 3, 32, 32))
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape))
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]


def test_a_block_adds_its_residual_to_the_identity() -> None:
    block = Block(4, 4, stride=1)
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    residual = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
    torch.testing.assert_close(block(x), (residual + x).clamp(min=0))


def test_a_block_that_changes_the_shape_adds_its_residual_to_a_normalised_projection() -> None:
    block = Block(4, 6, stride=2)
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    projection, normalisation = block.downsample
    assert (projection.kernel_size, projection.stride, projection.bias) == ((1, 1), (2, 2), None)
    nn.init.zeros_(block.bn2.weight)
    torch.testing.assert_close(block(x), normalisation(projection(x)).clamp(min=0))


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_a_depth_other_than_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth: expected 6n \+ 2 layers .*, got {depth}"):
        ResNet.create(depth)
