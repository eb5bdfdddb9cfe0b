"""A 2-D convolution that computes on the survivors of its mask only, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_fast.ops.library import serve_cuda
from lth_fast.ops.sparse_conv2d_pattern import SparseConv2dPattern, coordinates


def sparse_conv2d(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: SparseConv2dPattern,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` for a weight of which only the survivors exist.

    On the CPU the work is proportional to the number of survivors, in the forward and in both gradients, and the result
    does not depend on the number of threads. On CUDA it is that of torch's dense convolution, over a weight that every
    call makes of ``values``; their gradient is picked from that of the weight. A gradient that autograd does not ask
    for is not computed.

    Args:
        input: float32 or float64 ``[batch, in_channels, height, width]``; read fastest where it is contiguous.
        values: ``[survivors]``, the weights the mask keeps in row-major order (``weight[mask]``), of the dtype and on
            the device of ``input``.
        bias: ``[out_channels]`` or ``None``.
        pattern: The survivors' places, from :func:`~lth_fast.ops.sparse_conv2d_pattern` for the same ``groups``. It is
            trusted: shapes and dtypes are checked, the numbers inside are not.
        kernel_size: Height and width of the kernel.
        stride: Step in pixels, (vertical, horizontal).
        padding: Zeros added on either side, in pixels.
        dilation: Distance of the kernel's taps, in pixels.
        groups: Number of channel groups.
        relu: Whether to return the ReLU of the result, at no cost in the forward.

    Returns:
        ``[batch, out_channels, height', width']``, contiguous. Under autocast the operator computes in float32
        (the layer takes the dense form there).

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given. Or 16
            padded images have more than 2**31 - 1 pixels in all their channels.
    """
    return torch.ops.lth_fast.sparse_conv2d(
        input, values, bias, *pattern, kernel_size, stride, padding, dilation, groups, relu
    )


def to_dense(values: Tensor, pattern: SparseConv2dPattern, kernel_size: Sequence[int], groups: int = 1) -> Tensor:
    """The dense weight: ``values`` at the survivors' places, 0 elsewhere.

    Returns:
        ``[out_channels, in_channels / groups, *kernel_size]``.
    """
    out_channels, in_channels = pattern.output_starts.numel() - 1, pattern.input_starts.numel() - 1
    shape = (out_channels, in_channels // groups, *kernel_size)
    return values.new_zeros(shape).flatten(1).index_put(coordinates(pattern), values).view(shape)


def from_dense(weight: Tensor, pattern: SparseConv2dPattern) -> Tensor:
    """The survivors ``[survivors]`` of ``weight`` ``[out_channels, in_channels / groups, *kernel_size]``, row-major."""
    channel, tap = coordinates(pattern)
    return weight.flatten(1)[channel.to(weight.device), tap.to(weight.device)]


def reference(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: SparseConv2dPattern,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """Definition of :func:`sparse_conv2d`: a convolution with the dense weight, differentiable as it stands."""
    weight = to_dense(values, pattern, kernel_size, groups)
    output = F.conv2d(input, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    return output.relu() if relu else output


# ---- on CUDA: dense arithmetic between the same arguments, which a CUDA graph can record ----


def _forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    output_starts: Tensor,
    input_taps: Tensor,
    input_starts: Tensor,
    output_taps: Tensor,
    permutation: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool = False,
) -> Tensor:
    pattern = SparseConv2dPattern(output_starts, input_taps, input_starts, output_taps, permutation)
    return reference(input, values, bias, pattern, kernel_size, stride, padding, dilation, groups, relu).contiguous()


def _backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    output_starts: Tensor,
    input_taps: Tensor,
    input_starts: Tensor,
    output_taps: Tensor,
    permutation: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    pattern = SparseConv2dPattern(output_starts, input_taps, input_starts, output_taps, permutation)
    input_wanted, values_wanted, bias_wanted = wanted
    no_bias, transposed, no_output_padding = None, False, (0, 0)
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        to_dense(values, pattern, kernel_size, groups),
        no_bias,
        stride,
        padding,
        dilation,
        transposed,
        no_output_padding,
        groups,
        (input_wanted, values_wanted, False),
    )
    return (
        grad_input.contiguous() if input_wanted else values.new_empty(0),
        grad_weight.flatten(1)[coordinates(pattern)] if values_wanted else values.new_empty(0),
        grad_output.sum((0, 2, 3))
        if bias_wanted
        else values.new_empty(0),  # torch's sum rounds less than its convolution
    )


serve_cuda("sparse_conv2d", _forward)
serve_cuda("sparse_conv2d_backward", _backward)


@torch.library.register_fake("lth_fast::sparse_conv2d")
def _(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    output_starts: Tensor,
    input_taps: Tensor,
    input_starts: Tensor,
    output_taps: Tensor,
    permutation: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool = False,
) -> Tensor:
    height, width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // stride_ + 1
        for size, kernel, stride_, pad, step in zip(
            input.shape[2:], kernel_size, stride, padding, dilation, strict=True
        )
    )
    return input.new_empty((input.shape[0], output_starts.shape[0] - 1, height, width))


@torch.library.register_fake("lth_fast::sparse_conv2d_backward")
def _(
    grad_output: Tensor, input: Tensor, values: Tensor, output_starts: Tensor, *pattern_and_geometry: Any
) -> tuple[Tensor, ...]:
    *_, wanted = pattern_and_geometry
    shapes = (input.shape, values.shape, (output_starts.shape[0] - 1,))
    return tuple(values.new_empty(shape if given else (0,)) for shape, given in zip(shapes, wanted, strict=True))
