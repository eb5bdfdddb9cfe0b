"""What the networks of this package share: their arguments, and weights that can be drawn again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import nn

from lth_fast.models.init import initialise

if TYPE_CHECKING:
    from typing_extensions import Self

Shape = tuple[int, int, int]


class Options(TypedDict, total=False):
    """Keyword arguments of every model function.

    Attributes:
        input_shape: Channels, height and width of one image; default (1, 28, 28).
        classes: Number of classes, the width of the output layer; default 10.
        dropout: Probability of zeroing an activation before a fully connected layer, in [0, 1); default 0.
        init: Scheme of :func:`lth_fast.models.initialise`; None, the default, is the network's own.
        generator: Source of the initial weights; None, the default, is torch's global one, which stays untouched
            otherwise.
    """

    input_shape: Shape
    classes: int
    dropout: float
    init: str | None
    generator: torch.Generator | None


class Network(nn.Module):
    """A classifier of images: float tensors (N, channels, height, width) to logits (N, classes)."""

    default_init: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.init = self.default_init
        self.criterion = nn.CrossEntropyLoss()

    @classmethod
    def create(
        cls,
        *architecture: Any,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        dropout: float = 0.0,
        init: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build the network and draw its weights; for the arguments see :class:`Options`.

        Args:
            architecture: What tells the members of the family apart, such as a depth; the first arguments of the class.

        Raises:
            ValueError: An argument is outside its range, or the images are too small for the network.
        """
        check_arguments(input_shape, classes, dropout)
        # torch draws weights as it makes a layer. These are replaced, so they must not advance the global generator.
        with torch.random.fork_rng(devices=[]):
            network = cls(*architecture, input_shape, classes, dropout)  # type: ignore[call-arg]
        network.init = init or cls.default_init
        network._initialize_weights(generator)
        return network

    def _initialize_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter again in place, by the scheme the network was created with."""
        initialise(self, self.init, generator)


def check_arguments(input_shape: Shape, classes: int, dropout: float) -> None:
    """Refuse what no network can be built for.

    Raises:
        ValueError: An argument is outside its range.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape: expected (channels, height, width), each at least 1, got {input_shape!r}")
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")


def pad_to_cifar_size(input_shape: Shape) -> nn.Module:
    """A centred zero padding that brings images of ``input_shape`` to at least 32 x 32 pixels.

    The networks for CIFAR halve the image up to four times, so smaller images need a border.
    """
    _, height, width = input_shape
    vertical, horizontal = max(0, 32 - height), max(0, 32 - width)
    if vertical == horizontal == 0:
        return nn.Identity()
    left, top = horizontal // 2, vertical // 2
    return nn.ZeroPad2d((left, horizontal - left, top, vertical - top))
