"""LeNet-300-100."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.models.fully_connected import lenet


def weights(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for name, parameter in model.named_parameters() if name.endswith("weight")]


def test_lenet_on_mnist_has_the_266200_weights_of_the_paper() -> None:
    model = lenet()
    assert weights(model) == [(300, 784), (100, 300), (10, 100)]
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2) == 266_200


def test_hidden_sizes_follow_the_name() -> None:
    assert weights(models.build("lenet:50-20-9", (3, 4, 5), 2)) == [(50, 60), (20, 50), (9, 20), (2, 9)]


def test_lenet_is_linear_layers_with_relu_between_them() -> None:
    model = lenet(hidden=(6, 5), input_shape=(2, 3, 4), classes=3, generator=torch.Generator().manual_seed(0))
    images = torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    first, second, third = (module for module in model.modules() if isinstance(module, nn.Linear))
    hidden = second(first(images.reshape(7, 24)).clamp(min=0)).clamp(min=0)
    torch.testing.assert_close(model(images), third(hidden))


@pytest.mark.parametrize("hidden", [(), (3, 0)])
def test_a_hidden_layer_without_units_is_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"hidden: expected one or more layer widths, each at least 1, got \("):
        lenet(hidden=hidden)
