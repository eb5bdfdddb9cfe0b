"""Layers under a mask. They keep the plain layer's parameters, ``state_dict`` and arguments."""

from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.masked_conv2d import MaskedConv2d
from lth_fast.nn.masked_linear import MaskedLinear
from lth_fast.nn.masked_parameter import MaskedParameter
from lth_fast.nn.model import dense_state, masked_layers, masks, restore, set_masks

__all__ = [
    "MaskedConv2d",
    "MaskedLayer",
    "MaskedLinear",
    "MaskedParameter",
    "dense_state",
    "masked_layers",
    "masks",
    "restore",
    "set_masks",
]
