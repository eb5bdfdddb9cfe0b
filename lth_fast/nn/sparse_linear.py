"""A linear layer that holds and computes its survivors only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.fx import Proxy

from lth_fast.nn.attributes import buffer, parameter
from lth_fast.nn.sparse import SparseLayer
from lth_fast.nn.tracing import node_of
from lth_fast.ops import SparsePattern, sparse_pattern
from lth_fast.ops.sparse_linear import from_dense, to_dense

_compute = torch.ops.lth_fast.sparse_linear.default


class SparseLinear(SparseLayer):
    """``nn.Linear`` under a fixed mask, with time and memory in proportion to the survivors.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether to add a bias.
        device: Where the parameters live.
        dtype: ``torch.float32`` or ``torch.float64``; in half precision the dense weight is made and computed with.
        mask: bool ``[out_features, in_features]``, ``True`` where the weight survives; ``None`` keeps every weight.

    Shape: input ``[..., in_features]`` → output ``[..., out_features]``. The parameters start as the survivors of what
    ``nn.Linear`` draws.
    """

    plain_class = nn.Linear
    plain_attributes = ("in_features", "out_features")
    pattern_fields = SparsePattern._fields

    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._take(nn.Linear(in_features, out_features, bias, device, dtype), mask)

    def _find_pattern(self, mask: Tensor) -> SparsePattern:
        return sparse_pattern(mask)

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def _spread(self, values: Tensor) -> Tensor:
        return to_dense(values, self.pattern)

    def _collect(self, weight: Tensor) -> Tensor:
        return from_dense(weight, self.pattern)

    @property
    def pattern(self) -> SparsePattern:
        """The survivors' places, as :func:`lth_fast.ops.sparse_linear` takes them."""
        return SparsePattern(*[buffer(self, name) for name in self.pattern_fields])

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return node_of(self, input)
        if self._computes_densely(input):
            return F.linear(input, self.weight, self.bias)
        # The op itself, and the buffers where they are held: a small layer computes no longer than a few calls take.
        held = self._buffers
        pattern = [held[name] for name in self.pattern_fields]
        if not is_compiling() and pattern[0]._version != self._pattern_version:  # type: ignore[union-attr]
            self._check_pattern()
        return _compute(input, parameter(self, "values"), parameter(self, "bias"), *pattern, False)
