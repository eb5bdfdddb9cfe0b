"""Masks as one bit per weight.

Weight ``i`` of the flattened mask (row-major order) is bit ``i % 8``, counted from the lowest, of byte ``i // 8``; bits
behind the last weight are 0. NumPy calls this order ``bitorder="little"``, so files written by either side agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask into bits.

    Args:
        mask: bool tensor of any shape; ``True`` where the weight survives.

    Returns:
        uint8 tensor of shape ``[ceil(mask.numel() / 8)]`` on the mask's device.

    Raises:
        RuntimeError: ``mask`` is not a bool tensor.
    """
    return torch.ops.lth_fast.pack_mask(mask)


def unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bits into a bool mask, the inverse of :func:`pack_mask`.

    Args:
        bits: contiguous uint8 tensor of shape ``[ceil(prod(shape) / 8)]``.
        shape: Shape of the mask.

    Returns:
        bool tensor of shape ``shape`` on the device of ``bits``.

    Raises:
        RuntimeError: ``bits`` has another dtype or length than ``shape`` asks for.
    """
    return torch.ops.lth_fast.unpack_mask(bits, shape)


def reference_pack_mask(mask: Tensor) -> Tensor:
    """Definition of :func:`pack_mask`."""
    if mask.dtype != torch.bool:
        raise RuntimeError(f"pack_mask: mask must be bool, got {mask.dtype}")
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded * powers).sum(1, dtype=torch.uint8)


def reference_unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Definition of :func:`unpack_mask`."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-count // 8),):
        raise RuntimeError(
            f"unpack_mask: bits must be uint8 of shape [{-(-count // 8)}], got {bits.dtype} {list(bits.shape)}"
        )
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    lanes = (bits.unsqueeze(1) >> places) & 1
    return lanes.reshape(-1)[:count].reshape(tuple(shape)).bool()


serve_cuda("pack_mask", reference_pack_mask)
serve_cuda("unpack_mask", reference_unpack_mask)


@torch.library.register_fake("lth_fast::pack_mask")
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(((mask.numel() + 7) // 8,), dtype=torch.uint8)


@torch.library.register_fake("lth_fast::unpack_mask")
def _(bits: Tensor, shape: Sequence[int]) -> Tensor:
    return bits.new_empty(tuple(shape), dtype=torch.bool)
