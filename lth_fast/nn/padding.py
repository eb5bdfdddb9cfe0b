"""The padding of ``nn.Conv2d``, for convolutions that add zeros and the same number of them on either side."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def pad(layer: Any, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What to convolve, and the zeros the convolution adds, for what ``layer`` asks of ``input``.

    Args:
        layer: Anything with the attributes of an ``nn.Conv2d``: ``padding`` (also by name) and ``padding_mode``.
        input: ``[..., height, width]``.

    Returns:
        The input, padded where zeros inside the convolution cannot say it, and the (vertical, horizontal) zeros left.
    """
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return input, layer.padding
    # torch keeps, for these cases, the four border widths that the name or the mode stands for.
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros" and left == right and top == bottom:
        return input, (top, left)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(input, (left, right, top, bottom), mode=mode), (0, 0)
