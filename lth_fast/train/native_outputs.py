"""What fully connected networks make of a data set, in native code."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lth_fast.data import ResidentLoader
from lth_fast.train.linear_chain import linear_chain
from lth_fast.train.native_network import linear_network

IMAGES_OF_A_THREAD = 256
"""A call computes at least so many for each thread: they pass by 64 at a time."""


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
    images = len(loader.images)
    size = min(loader.batch_size, images)
    per_call = math.ceil(IMAGES_OF_A_THREAD * torch.get_num_threads() / size) * size
    for first in range(0, images, per_call):
        outputs = network.outputs(first, min(per_call, images - first))
        yield from zip(outputs.split(size), loader.labels[first : first + per_call].split(size), strict=True)
