"""Residual networks for CIFAR (He et al. 2016, section 4.2), with projection shortcuts as in the lottery-ticket paper.

The paper's "ResNet-18" is ResNet-20 here: 19 convolutions in the main path and the output layer, as He et al. count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lth_fast.models.network import Network, Shape, pad_to_cifar_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lth_fast.models.network import Options


def resnet20(**options: Unpack[Options]) -> ResNet:
    """ResNet-20; 270,896 weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return ResNet.create(20, **options)


def resnet32(**options: Unpack[Options]) -> ResNet:
    """ResNet-32; 0.46M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return ResNet.create(32, **options)


def resnet44(**options: Unpack[Options]) -> ResNet:
    """ResNet-44; 0.66M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return ResNet.create(44, **options)


def resnet56(**options: Unpack[Options]) -> ResNet:
    """ResNet-56; 0.85M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return ResNet.create(56, **options)


def resnet110(**options: Unpack[Options]) -> ResNet:
    """ResNet-110; 1.7M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return ResNet.create(110, **options)


class ResNet(Network):
    """Three stages of residual blocks with 16, 32 and 64 channels, a global average pool, and one linear layer.

    Images under 32 x 32 pixels are padded with zeros.
    """

    default_init = "kaiming"

    def __init__(self, depth: int, input_shape: Shape, classes: int, dropout: float) -> None:
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"depth: expected 6n + 2 layers for n >= 1 blocks in each of three stages, got {depth!r}")
        super().__init__()
        self.pad = pad_to_cifar_size(input_shape)
        self.conv1 = nn.Conv2d(input_shape[0], 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), of ``images``, (N, channels, height, width)."""
        stem = torch.relu(self.bn1(self.conv1(self.pad(images))))
        features = self.pool(self.layer3(self.layer2(self.layer1(stem))))
        return self.fc(self.dropout(self.flatten(features)))


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # No biases: the batch normalisation that follows would subtract them again.
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, height, width) to (N, outputs, height / stride, width / stride)."""
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, stride), *(Block(outputs, outputs, stride=1) for _ in range(blocks - 1))
    )
