"""VGG for CIFAR."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast import models


@pytest.mark.parametrize(
    ("name", "weights", "convolutions"),
    [("vgg11", 9_222_848, 8), ("vgg13", 9_407_168, 10), ("vgg16", 14_715_584, 13), ("vgg19", 20_024_000, 16)],
)
def test_weights_and_layers_on_cifar10(name: str, weights: int, convolutions: int) -> None:
    layers = [m for m in models.build(name, (3, 32, 32)).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(layer.weight.numel() for layer in layers) == weights
    assert [type(layer) for layer in layers] == [nn.Conv2d] * convolutions + [nn.Linear]


@pytest.mark.parametrize(("level", "percent"), [(15, 3.5), (19, 1.5)])
def test_vgg19_has_the_densities_of_the_paper_when_convolutions_lose_a_fifth_per_level(
    level: int, percent: float
) -> None:
    model = models.build("vgg19", (3, 32, 32))
    prunable = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    kept = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert round(100 * (prunable * 0.8**level + kept) / (prunable + kept), 1) == percent


def test_every_convolution_is_normalised_and_so_has_no_bias() -> None:
    model = models.build("vgg16")
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 13
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))


def test_the_image_is_halved_between_stages_and_averaged_after_the_last() -> None:
    model = models.build("vgg11", (3, 32, 32)).eval()
    features = model.features(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (1, 512, 2, 2)
    torch.testing.assert_close(model.flatten(model.pool(features)), features.mean(dim=(2, 3)))
