"""A 2-D convolution under a mask, with dense compute."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lth_fast.nn.masked import MaskedLayer
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

    def _copy_private(self, layer: Any) -> None:
        self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        if self.padding_mode != "zeros" or isinstance(padding, str):
            # torch keeps, for these cases, the four border widths that "same" or the mode stands for.
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            batched = F.pad(batched, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0, 0)
        weight = self.masked_weight()
        output = masked_conv2d(
            batched, weight, self.bias, self.mask_bits, self.stride, padding, self.dilation, self.groups
        )
        return output if input.dim() == 4 else output.squeeze(0)
