"""The padding of ``nn.Conv2d``, for convolutions that add zeros and the same number of them on either side."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair


def pad(layer: Any, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What to convolve, and the zeros the convolution adds, for what ``layer`` asks of ``input``.

    Args:
        layer: Anything with the attributes of an ``nn.Conv2d``, which count as they are now: some set them later.
        input: ``[..., height, width]``.

    Returns:
        The input, padded where zeros inside the convolution cannot say it, and the (vertical, horizontal) zeros left.
    """
    if layer.padding_mode != "zeros":
        # torch keeps the four border widths here, and goes by them alone.
        return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)
    if layer.padding == "valid":
        return input, (0, 0)
    if layer.padding != "same":
        return input, _pair(layer.padding)
    vertical, horizontal = (
        distance * (size - 1) for distance, size in zip(_pair(layer.dilation), layer.kernel_size, strict=True)
    )
    top, left = vertical // 2, horizontal // 2
    if vertical == 2 * top and horizontal == 2 * left:
        return input, (top, left)
    return F.pad(input, (left, horizontal - left, top, vertical - top)), (0, 0)
