"""LeNet-300-100, the fully connected network of the lottery-ticket paper (arXiv 1803.03635, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lth_fast.models.network import Network, Shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lth_fast.models.network import Options

LENET_HIDDEN = (300, 100)


def lenet(hidden: Sequence[int] = LENET_HIDDEN, **options: Unpack[Options]) -> LeNet:
    """LeNet-300-100; 266,200 weights on MNIST.

    Args:
        hidden: Widths of the hidden layers, each at least 1.
        options: See :class:`lth_fast.models.network.Options`.
    """
    return LeNet.create(hidden, **options)


class LeNet(Network):
    """Fully connected layers with ReLU between them, on the flattened image."""

    default_init = "glorot"

    def __init__(self, hidden: Sequence[int], input_shape: Shape, classes: int, dropout: float) -> None:
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden: expected one or more layer widths, each at least 1, got {hidden!r}")
        super().__init__()
        self.classifier = classifier(math.prod(input_shape), hidden, classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), of ``images``, (N, channels, height, width)."""
        return self.classifier(images)


def classifier(inputs: int, hidden: Sequence[int], classes: int, dropout: float) -> nn.Sequential:
    """Flatten, then fully connected layers ``fc1``, ``fc2``, … with ReLU and, if asked for, dropout between them."""
    layers = nn.Sequential()
    layers.add_module("flatten", nn.Flatten())
    for number, width in enumerate(hidden, start=1):
        layers.add_module(f"fc{number}", nn.Linear(inputs, width))
        layers.add_module(f"relu{number}", nn.ReLU())
        if dropout > 0:
            layers.add_module(f"dropout{number}", nn.Dropout(dropout))
        inputs = width
    layers.add_module(f"fc{len(hidden) + 1}", nn.Linear(inputs, classes))
    return layers
