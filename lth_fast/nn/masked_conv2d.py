"""A 2-D convolution under a mask, with dense compute."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.utils import _pair

from lth_fast.nn.attributes import buffer, parameter, transformed
from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.padding import pad
from lth_fast.nn.tracing import node_of
from lth_fast.ops import masked_conv2d


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight carries a mask; takes ``nn.Conv2d``'s arguments and starts with every weight kept.

    Shape: input ``[batch, in_channels, height, width]`` or unbatched ``[in_channels, height, width]``. Every stride,
    padding (also ``"same"`` and the padding modes), dilation and group count of ``nn.Conv2d`` works.
    """

    plain_class = nn.Conv2d
    padding: tuple[int, int] | str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self.mask = None

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return node_of(self, input)
        unbatched = input.dim() == 3
        batched, padding = pad(self, input.unsqueeze(0) if unbatched else input)
        weight, bias = self.masked_weight(), parameter(self, "bias")
        geometry = (_pair(self.stride), padding, _pair(self.dilation), self.groups)
        if self.masks_gradient and not transformed():
            output = masked_conv2d(batched, weight, bias, buffer(self, "mask_bits"), *geometry)
        else:
            output = F.conv2d(batched, weight, bias, *geometry)
        return output.squeeze(0) if unbatched else output
