"""A 2-D convolution that holds and computes its survivors only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.fx import Proxy

from lth_fast.nn.attributes import buffer, parameter
from lth_fast.nn.padding import pad
from lth_fast.nn.sparse import SparseLayer
from lth_fast.nn.tracing import node_of
from lth_fast.ops import SparseConv2dPattern, sparse_conv2d, sparse_conv2d_pattern
from lth_fast.ops.sparse_conv2d import from_dense, to_dense


class SparseConv2d(SparseLayer):
    """``nn.Conv2d`` under a fixed mask, with time and memory in proportion to the survivors.

    On CUDA that holds for the parameters and the optimizer's state alone: the convolution is torch's dense one.

    Args:
        *args, **kwargs: Those of ``nn.Conv2d``; every stride, padding (also ``"same"`` and the padding modes), dilation
            and group count works, in ``torch.float32`` or ``torch.float64``; in half precision the dense weight is made
            and computed with.
        mask: bool ``[out_channels, in_channels / groups, *kernel_size]``, ``True`` where the weight survives; ``None``
            keeps every weight.

    Shape: input ``[batch, in_channels, height, width]`` or unbatched ``[in_channels, height, width]`` → output
    ``[..., out_channels, height', width']``, contiguous. The parameters start as the survivors of what ``nn.Conv2d``
    draws.
    """

    plain_class = nn.Conv2d
    plain_attributes = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "transposed",
        "output_padding",
        "groups",
        "padding_mode",
        "_reversed_padding_repeated_twice",
    )
    pattern_fields = SparseConv2dPattern._fields

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

    def __init__(self, *args: Any, mask: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__()
        self._take(nn.Conv2d(*args, **kwargs), mask)

    def _find_pattern(self, mask: Tensor) -> SparseConv2dPattern:
        return sparse_conv2d_pattern(mask, self.groups)

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_channels, self.in_channels // self.groups, *self.kernel_size))

    def _spread(self, values: Tensor) -> Tensor:
        return to_dense(values, self.pattern, self.kernel_size, self.groups)

    def _collect(self, weight: Tensor) -> Tensor:
        return from_dense(weight, self.pattern)

    @property
    def pattern(self) -> SparseConv2dPattern:
        """The survivors' places, as :func:`lth_fast.ops.sparse_conv2d` takes them."""
        return SparseConv2dPattern(*[buffer(self, name) for name in self.pattern_fields])

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return node_of(self, input)
        unbatched = input.dim() == 3
        batched, padding = pad(self, input.unsqueeze(0) if unbatched else input)
        if self._computes_densely(input):
            output = F.conv2d(batched, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
            return output.squeeze(0) if unbatched else output
        pattern = self.pattern
        if not is_compiling() and pattern[0]._version != self._pattern_version:
            self._check_pattern()
        output = sparse_conv2d(
            batched,
            parameter(self, "values"),
            parameter(self, "bias"),
            pattern,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )
        return output.squeeze(0) if unbatched else output
