"""A dense 2-D convolution under a mask, whose backward zeroes the pruned places of the weight gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.masked_apply import reference as masked_apply_reference


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_bits: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` for a weight that is already zero where it is pruned.

    Args:
        input: ``[batch, in_channels, height, width]``.
        weight: ``[out_channels, in_channels / groups, kernel_height, kernel_width]``, zero where pruned.
        bias: ``[out_channels]`` or ``None``.
        mask_bits: uint8 ``[ceil(weight.numel() / 8)]`` from :func:`~lth_fast.ops.pack_mask`.
        stride: Step in pixels, (vertical, horizontal).
        padding: Zeros added on either side, in pixels.
        dilation: Distance of the kernel's taps, in pixels.
        groups: Number of channel groups.

    Returns:
        ``[batch, out_channels, height', width']``. Autocast casts as it does for ``conv2d``.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
            Strides, padding, dilation and groups that do not fit torch's convolution refuses in its own words.
    """
    return torch.ops.lth_fast.masked_conv2d(input, weight, bias, mask_bits, stride, padding, dilation, groups)


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_bits: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Definition of :func:`masked_conv2d`: a convolution with the masked weight, differentiable as it stands."""
    masked = masked_apply_reference(weight, mask_bits)
    return torch.nn.functional.conv2d(input, masked, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_bits: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return torch.ops.aten.conv2d(input, weight, bias, stride, padding, dilation, groups)


torch.library.register_fake("lth_fast::masked_conv2d", _forward)
