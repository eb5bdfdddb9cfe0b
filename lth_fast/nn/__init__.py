"""Layers under a mask, with dense compute (``MaskedX``) or compute on survivors only (``SparseX``).

Masked layers keep the plain layer's parameters and arguments, sparse ones hold ``values``; all keep its ``state_dict``.
"""

from lth_fast.nn.convert import Choice, choices, convert, explain, plan
from lth_fast.nn.distributed import broadcast_masks
from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.masked_conv2d import MaskedConv2d
from lth_fast.nn.masked_embedding import MaskedEmbedding
from lth_fast.nn.masked_linear import MaskedLinear
from lth_fast.nn.masked_parameter import MaskedParameter
from lth_fast.nn.model import (
    dense_state,
    load_dense_state,
    masked_layers,
    masks,
    restore,
    set_masks,
    share_masks,
    sparse_layers,
)
from lth_fast.nn.sparse import SparseLayer
from lth_fast.nn.sparse_conv2d import SparseConv2d
from lth_fast.nn.sparse_linear import SparseLinear

__all__ = [
    "Choice",
    "MaskedConv2d",
    "MaskedEmbedding",
    "MaskedLayer",
    "MaskedLinear",
    "MaskedParameter",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "broadcast_masks",
    "choices",
    "convert",
    "dense_state",
    "explain",
    "load_dense_state",
    "masked_layers",
    "masks",
    "plan",
    "restore",
    "set_masks",
    "share_masks",
    "sparse_layers",
]
