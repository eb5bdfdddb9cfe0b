"""Layers under a mask. They keep the plain layer's parameters, ``state_dict`` and arguments."""

from .masked import MaskedLayer
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .model import masked_layers, masks, restore, set_masks

__all__ = ["MaskedConv2d", "MaskedLayer", "MaskedLinear", "masked_layers", "masks", "restore", "set_masks"]
