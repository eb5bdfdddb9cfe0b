"""The native twin of a network that is a chain of linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lth_fast.data import ResidentLoader
from lth_fast.nn import MaskedLinear, SparseLinear
from lth_fast.train.linear_chain import FORMS, ChainLayer


def linear_network(chain: Iterable[ChainLayer], loader: ResidentLoader) -> Any:
    """The native class over the tensors that ``chain`` and ``loader`` have now; nothing is copied.

    What it takes has passed the checks of :mod:`~lth_fast.train.native_refusal`.
    """
    network = torch.classes.lth_fast.LinearNetwork(
        loader.images,
        loader.labels,
        loader.pixel_mean,
        loader.pixel_gain,
        min(loader.batch_size, len(loader.images)),  # which may be too large for 64 bits
    )
    for link in chain:
        layer, pattern = link.layer, []
        if isinstance(layer, SparseLinear):
            layer.check_pattern()
            pattern = list(layer.pattern)
        elif isinstance(layer, MaskedLinear):
            layer.mask_what_was_written()
        bias = None if layer.bias is None else layer.bias.detach()
        network.add_layer(FORMS[type(layer)], link.weight.detach(), bias, pattern, link.relu)
    return network
