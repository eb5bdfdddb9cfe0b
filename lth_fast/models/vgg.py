"""VGG with batch normalisation in its form for CIFAR (Simonyan & Zisserman 2014; arXiv 1803.03635, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from lth_fast.models.network import Network, Shape, pad_to_cifar_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lth_fast.models.network import Options

_CHANNELS = (64, 128, 256, 512, 512)


def vgg11(**options: Unpack[Options]) -> VGG:
    """VGG-11; 9.2M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return VGG.create((1, 1, 2, 2, 2), **options)


def vgg13(**options: Unpack[Options]) -> VGG:
    """VGG-13; 9.4M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return VGG.create((2, 2, 2, 2, 2), **options)


def vgg16(**options: Unpack[Options]) -> VGG:
    """VGG-16; 14.7M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return VGG.create((2, 2, 3, 3, 3), **options)


def vgg19(**options: Unpack[Options]) -> VGG:
    """VGG-19; 20.0M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return VGG.create((2, 2, 4, 4, 4), **options)


class VGG(Network):
    """Five stages of 3x3 convolutions with max pooling between them, a global average pool, and one linear layer.

    The three linear layers of the original, made for ImageNet, are one here, as in the paper. Images under 32 x 32
    pixels are padded with zeros.
    """

    default_init = "kaiming"

    def __init__(self, convolutions: tuple[int, ...], input_shape: Shape, classes: int, dropout: float) -> None:
        super().__init__()
        self.pad = pad_to_cifar_size(input_shape)
        self.features = nn.Sequential()
        channels = input_shape[0]
        for stage, (outputs, count) in enumerate(zip(_CHANNELS, convolutions, strict=True), start=1):
            if stage > 1:
                self.features.add_module(f"pool{stage - 1}", nn.MaxPool2d(2))
            for number in range(1, count + 1):
                # No bias: the batch normalisation that follows would subtract it again.
                self.features.add_module(
                    f"conv{stage}_{number}", nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False)
                )
                self.features.add_module(f"bn{stage}_{number}", nn.BatchNorm2d(outputs))
                self.features.add_module(f"relu{stage}_{number}", nn.ReLU())
                channels = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), of ``images``, (N, channels, height, width)."""
        features = self.pool(self.features(self.pad(images)))
        return self.fc(self.dropout(self.flatten(features)))
