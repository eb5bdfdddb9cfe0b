"""The operators, one file each: docstring, wrapper, fake kernel and a readable ``reference`` that defines the result.

All of them are registered with torch under ``torch.ops.lth_fast``.
"""

from lth_fast.ops import library as _library  # noqa: F401  loads the native operators before the files below register theirs
from lth_fast.ops.adam_step import adam_step_
from lth_fast.ops.gather_images import gather_images
from lth_fast.ops.magnitude_threshold import MagnitudeThreshold, magnitude_threshold, prune_by_magnitude
from lth_fast.ops.mask_packing import pack_mask, unpack_mask
from lth_fast.ops.masked_apply import masked_apply, masked_apply_, masked_apply_each_
from lth_fast.ops.masked_conv2d import masked_conv2d
from lth_fast.ops.masked_linear import masked_linear
from lth_fast.ops.sgd_step import sgd_step_
from lth_fast.ops.sparse_conv2d import sparse_conv2d
from lth_fast.ops.sparse_conv2d_pattern import SparseConv2dPattern, sparse_conv2d_pattern
from lth_fast.ops.sparse_linear import sparse_linear
from lth_fast.ops.sparse_pattern import SparsePattern, sparse_pattern

__all__ = [
    "MagnitudeThreshold",
    "SparseConv2dPattern",
    "SparsePattern",
    "adam_step_",
    "gather_images",
    "magnitude_threshold",
    "masked_apply",
    "masked_apply_",
    "masked_apply_each_",
    "masked_conv2d",
    "masked_linear",
    "pack_mask",
    "prune_by_magnitude",
    "sgd_step_",
    "sparse_conv2d",
    "sparse_conv2d_pattern",
    "sparse_linear",
    "sparse_pattern",
    "unpack_mask",
]
