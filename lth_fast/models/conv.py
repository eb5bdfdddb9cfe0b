"""Conv-2, Conv-4 and Conv-6: scaled-down VGGs of the lottery-ticket paper (arXiv 1803.03635, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from lth_fast.models.fully_connected import classifier
from lth_fast.models.network import Network, Shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lth_fast.models.network import Options

_CHANNELS = (64, 128, 256)


def conv2(**options: Unpack[Options]) -> Conv:
    """Conv-2, two convolutions; 4.3M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return Conv.create(1, **options)


def conv4(**options: Unpack[Options]) -> Conv:
    """Conv-4, four convolutions; 2.4M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return Conv.create(2, **options)


def conv6(**options: Unpack[Options]) -> Conv:
    """Conv-6, six convolutions; 2.3M weights on CIFAR-10. Options: :class:`lth_fast.models.network.Options`."""
    return Conv.create(3, **options)


class Conv(Network):
    """Pairs of 3x3 convolutions with ReLU, each pair halving the image, then fully connected layers 256-256-classes."""

    default_init = "glorot"

    def __init__(self, pairs: int, input_shape: Shape, classes: int, dropout: float) -> None:
        channels, height, width = input_shape
        if min(height, width) < 2**pairs:
            raise ValueError(
                f"input_shape: Conv-{2 * pairs} halves the image {pairs} times and needs at least "
                f"{2**pairs} x {2**pairs} pixels, got {input_shape!r}"
            )
        super().__init__()
        self.features = nn.Sequential()
        for pair, outputs in enumerate(_CHANNELS[:pairs], start=1):
            for number in (2 * pair - 1, 2 * pair):
                self.features.add_module(f"conv{number}", nn.Conv2d(channels, outputs, kernel_size=3, padding=1))
                self.features.add_module(f"relu{number}", nn.ReLU())
                channels = outputs
            self.features.add_module(f"pool{pair}", nn.MaxPool2d(2))
        pixels = (height >> pairs) * (width >> pairs)
        self.classifier = classifier(channels * pixels, (256, 256), classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes), of ``images``, (N, channels, height, width)."""
        return self.classifier(self.features(images))
