"""Layers under a mask, with dense compute (``MaskedX``) or compute on survivors only (``SparseX``).

Masked layers keep the plain layer's parameters and arguments, sparse ones hold ``values``; all keep its ``state_dict``.
"""

from .masked import MaskedLayer
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .model import masked_layers, masks, restore, set_masks
from .sparse_linear import SparseLinear

__all__ = [
    "MaskedConv2d",
    "MaskedLayer",
    "MaskedLinear",
    "SparseLinear",
    "masked_layers",
    "masks",
    "restore",
    "set_masks",
]
