"""What fully connected networks make of a data set, in native code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lth_fast.data import ResidentLoader
from lth_fast.train.linear_chain import linear_chain
from lth_fast.train.native_network import linear_network


def native_outputs(model: nn.Module, loader: ResidentLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``model`` makes of every batch of ``loader``, with the labels: the bits of ``model(inputs)``.

    The sparse layers before the first one of another form pass over a few images at a time, one layer after the other,
    so that what goes between them stays in cache.

    Args:
        model, loader: As :func:`~lth_fast.train.native_outputs_refusal.native_outputs_refusal` takes them.

    Yields:
        float32 ``[batch, classes]``, without autograd, and int64 ``[batch]``.
    """
    network = linear_network(linear_chain(model), loader)
    size, images = loader.batch_size, len(loader.images)
    for first in range(0, images, size):
        count = min(size, images - first)
        yield network.outputs(first, count), loader.labels[first : first + count]
