"""An embedding under a mask: what a masked decoder shares its weight with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lth_fast.nn.attributes import becomes_a_graph, of_another_kind
from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.tracing import node_of
from lth_fast.ops import masked_apply


class MaskedEmbedding(MaskedLayer, nn.Embedding):
    """``nn.Embedding`` whose weight carries a mask; takes its arguments and starts with every weight kept.

    Shape: indices ``[...]`` to output ``[..., embedding_dim]``. Pruned weights and their gradients are 0.
    ``sparse=True`` is refused by :func:`~lth_fast.nn.set_masks`: the gradient of a masked weight is dense.
    """

    plain_class = nn.Embedding

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Embedding.__init__(self, *args, **kwargs)
        self.mask = None

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return node_of(self, input)
        if self.max_norm is not None and becomes_a_graph():  # where the weight below is a masked copy
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, input.contiguous(), self.max_norm, self.norm_type)
        weight, by_rows = self.masked_weight(), not of_another_kind(input)
        rows = nn.functional.embedding(
            input,
            weight if by_rows else masked_apply(weight, self.mask_bits),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        # The values are zero there already; this masks the gradient, at the cost of the rows that are used.
        return torch.where(self._kept(input), rows, 0) if by_rows else rows

    def _kept(self, input: Tensor) -> Tensor:
        """The mask's rows ``input``, without unpacking the others."""
        places = input.long().unsqueeze(-1) * self.embedding_dim + torch.arange(self.embedding_dim, device=input.device)
        return (self.mask_bits[places >> 3] >> (places & 7).to(torch.uint8)) & 1 != 0
