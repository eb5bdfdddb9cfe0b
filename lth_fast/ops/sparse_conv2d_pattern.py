"""Where the survivors of a convolution's mask are, in the two orders a sparse convolution walks them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda


class SparseConv2dPattern(NamedTuple):
    """The survivors of a mask ``[out_channels, in_channels / groups, height, width]``, by output and by input channel.

    Attributes:
        output_starts: int32 ``[out_channels + 1]``: output channel ``o`` has the survivors from ``output_starts[o]`` to
            ``output_starts[o + 1]`` of the row-major order.
        input_taps: int32 ``[survivors]``, the index of each survivor, in row-major order, into its output channel's
            ``[in_channels / groups, height, width]``.
        input_starts: int32 ``[in_channels + 1]``: the same for the survivors ordered by input channel.
        output_taps: int32 ``[survivors]``, the index of each survivor, ordered by input channel, into that channel's
            ``[out_channels / groups, height, width]``.
        permutation: int32 ``[survivors]``, the position in row-major order of each survivor ordered by input channel.
    """

    output_starts: Tensor
    input_taps: Tensor
    input_starts: Tensor
    output_taps: Tensor
    permutation: Tensor


def sparse_conv2d_pattern(mask: Tensor, groups: int = 1) -> SparseConv2dPattern:
    """Find the survivors of ``mask``. Done once per mask; on CUDA it waits for the device, to learn their number.

    Args:
        mask: bool ``[out_channels, in_channels / groups, height, width]``, ``True`` where the weight survives; at most
            2**31 - 1 elements.
        groups: Number of channel groups; divides ``out_channels``.

    Returns:
        The pattern, on the mask's device.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    return SparseConv2dPattern(*torch.ops.lth_fast.sparse_conv2d_pattern(mask, groups))


def coordinates(pattern: SparseConv2dPattern) -> tuple[Tensor, Tensor]:
    """Output channel and index into its filter of every survivor in row-major order, int64 ``[survivors]`` each."""
    lengths = pattern.output_starts.diff().long()
    channels = torch.arange(lengths.numel(), device=lengths.device)
    return channels.repeat_interleave(lengths, output_size=pattern.input_taps.numel()), pattern.input_taps.long()


def reference(mask: Tensor, groups: int = 1) -> SparseConv2dPattern:
    """Definition of :func:`sparse_conv2d_pattern`."""
    if mask.dtype != torch.bool or mask.dim() != 4:
        raise RuntimeError(
            f"sparse_conv2d_pattern: mask must be bool with 4 dimensions, got {mask.dtype} {list(mask.shape)}"
        )
    order = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    order[mask] = torch.arange(int(mask.sum()), dtype=torch.int32, device=mask.device)
    by_output, by_input = mask.flatten(1), _by_input(mask, groups)
    return SparseConv2dPattern(
        output_starts=_starts(by_output),
        input_taps=by_output.nonzero()[:, 1].int(),
        input_starts=_starts(by_input),
        output_taps=by_input.nonzero()[:, 1].int(),
        permutation=_by_input(order, groups)[by_input],
    )


def _by_input(weight: Tensor, groups: int) -> Tensor:
    """``[out_channels, in_channels / groups, ...]`` as ``[in_channels, out_channels / groups * taps]``."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)


def _starts(by_channel: Tensor) -> Tensor:
    return torch.nn.functional.pad(by_channel.sum(1).cumsum(0), (1, 0)).int()


serve_cuda("sparse_conv2d_pattern", reference)


@torch.library.register_fake("lth_fast::sparse_conv2d_pattern")
def _(mask: Tensor, groups: int) -> SparseConv2dPattern:
    survivors = torch.library.get_ctx().new_dynamic_size()  # known when the values are
    sizes = (mask.shape[0] + 1, survivors, mask.shape[1] * groups + 1, survivors, survivors)
    return SparseConv2dPattern(*(mask.new_empty((size,), dtype=torch.int32) for size in sizes))
