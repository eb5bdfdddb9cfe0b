"""The operators, one file each: docstring, wrapper, fake kernel and a readable ``reference`` that defines the result.

All of them are registered with torch under ``torch.ops.lth_fast``.
"""

from . import library as _library  # noqa: F401  loads the native operators before the files below register theirs
from .magnitude_threshold import MagnitudeThreshold, magnitude_threshold, prune_by_magnitude
from .mask_packing import pack_mask, unpack_mask
from .masked_apply import masked_apply, masked_apply_
from .masked_conv2d import masked_conv2d
from .masked_linear import masked_linear

__all__ = [
    "MagnitudeThreshold",
    "magnitude_threshold",
    "masked_apply",
    "masked_apply_",
    "masked_conv2d",
    "masked_linear",
    "pack_mask",
    "prune_by_magnitude",
    "unpack_mask",
]
