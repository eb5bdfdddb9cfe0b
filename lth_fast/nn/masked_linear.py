"""A linear layer under a mask, with dense compute."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lth_fast.nn.attributes import buffer, of_another_kind, parameter, transformed
from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.tracing import node_of
from lth_fast.ops import masked_apply, masked_linear


class MaskedLinear(MaskedLayer, nn.Linear):
    """``nn.Linear`` whose weight carries a mask; takes ``nn.Linear``'s arguments and starts with every weight kept.

    Shape: input ``[..., in_features]`` to output ``[..., out_features]``. Pruned weights and their gradients are 0.
    """

    plain_class = nn.Linear

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self.mask = None

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return node_of(self, input)
        if transformed():
            return F.linear(input, self.masked_weight(), parameter(self, "bias"))
        if of_another_kind(input):
            return F.linear(
                input, masked_apply(self.masked_weight(), buffer(self, "mask_bits")), parameter(self, "bias")
            )
        bits = buffer(self, "mask_bits") if self.masks_gradient else None
        return masked_linear(input, self.masked_weight(), parameter(self, "bias"), bits)
