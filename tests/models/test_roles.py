"""The output layer and the projection shortcuts."""

from __future__ import annotations

import pytest
from torch import nn

from lth_fast import models
from lth_fast.nn import convert
from lth_fast.prune import prune_all


@pytest.mark.parametrize("name", models.models)
def test_the_output_layer_is_the_one_with_a_unit_per_class(name: str) -> None:
    model = models.build(name, (1, 8, 8), classes=17)
    assert model.get_submodule(models.output_layer(model)).out_features == 17


def test_the_output_layer_may_be_a_convolution() -> None:
    assert models.output_layer(nn.Sequential(nn.Linear(2, 3), nn.Conv2d(3, 4, 1), nn.ReLU())) == "1"


def test_roles_are_those_of_the_plain_network_when_its_layers_are_sparse() -> None:
    plain, sparse = models.build("resnet20", (1, 8, 8)), models.build("resnet20", (1, 8, 8))
    convert(prune_all(sparse, 0.9), form="sparse")
    assert models.output_layer(sparse) == models.output_layer(plain) == "fc"
    assert models.shortcut_layers(sparse) == models.shortcut_layers(plain)


def test_a_network_without_linear_or_convolution_has_no_output_layer() -> None:
    with pytest.raises(ValueError, match="model: expected a network with a Linear or Conv2d layer, got a ReLU"):
        models.output_layer(nn.ReLU())


@pytest.mark.parametrize("name", [name for name in models.models if name.startswith("resnet")])
def test_a_residual_network_has_a_shortcut_convolution_where_the_shape_changes(name: str) -> None:
    assert models.shortcut_layers(models.build(name)) == ["layer2.0.downsample.0", "layer3.0.downsample.0"]


@pytest.mark.parametrize("name", ["lenet", "conv6", "vgg11"])
def test_a_plain_network_has_no_shortcuts(name: str) -> None:
    assert models.shortcut_layers(models.build(name, (1, 8, 8))) == []


def test_other_convolutions_are_no_shortcuts() -> None:
    model = nn.ModuleDict(
        {"pointwise": nn.Conv2d(1, 2, 1), "shortcut": nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3))}
    )
    assert models.shortcut_layers(model) == ["shortcut.0"]


def test_shortcuts_and_output_of_torchvision_networks_are_found() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=(ImportError, RuntimeError))
    model = models.build("torchvision:resnet18")
    assert models.shortcut_layers(model) == [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert models.output_layer(model) == "fc"
