"""Zero what a mask prunes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.library import refuse_meta_among_others, serve_cuda
from lth_fast.ops.mask_packing import reference_unpack_mask


def masked_apply(input: Tensor, mask_bits: Tensor) -> Tensor:
    """Return ``input`` where the mask is set and an exact ``+0`` elsewhere (also where ``input`` is NaN or infinite).

    Args:
        input: Tensor of any shape whose elements have 2, 4 or 8 bytes (float16, bfloat16, float32, float64).
        mask_bits: uint8 ``[ceil(input.numel() / 8)]`` from :func:`~lth_fast.ops.pack_mask`, on the device of ``input``.

    Returns:
        Contiguous tensor of the shape and dtype of ``input``. Differentiable (any number of times) in ``input``.

    Raises:
        RuntimeError: ``mask_bits`` or ``input`` is not as described; the message names expected and given.
    """
    return torch.ops.lth_fast.masked_apply(input, mask_bits)


def masked_apply_(tensor: Tensor, mask_bits: Tensor) -> Tensor:
    """:func:`masked_apply` in place, without autograd: for weights, gradients and optimizer state.

    Returns:
        ``tensor``, whose version counter has advanced.
    """
    torch.ops.lth_fast.masked_apply_(tensor.detach(), mask_bits)
    return tensor


def masked_apply_each_(tensors: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> None:
    """:func:`masked_apply_` for many tensors: on CUDA a few launches for all of them.

    Args:
        tensors: On one device, as :func:`masked_apply_` takes each.
        mask_bits: The mask of each.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    if tensors:  # by which torch finds the kernel
        torch.ops.lth_fast.masked_apply_each_([tensor.detach() for tensor in tensors], list(mask_bits))


def reference(input: Tensor, mask_bits: Tensor) -> Tensor:
    """Definition of :func:`masked_apply`."""
    mask = reference_unpack_mask(mask_bits, input.shape)
    return torch.where(mask, input, torch.zeros((), dtype=input.dtype, device=input.device)).contiguous()


def _reference_in_place(tensor: Tensor, mask_bits: Tensor) -> None:
    tensor.copy_(reference(tensor, mask_bits))


def _reference_of_each(tensors: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> None:
    for tensor, bits in zip(tensors, mask_bits, strict=True):
        _reference_in_place(tensor, bits)


serve_cuda("masked_apply", reference)
serve_cuda("masked_apply_", _reference_in_place)
serve_cuda("masked_apply_each_", _reference_of_each)


@torch.library.register_fake("lth_fast::masked_apply")
def _(input: Tensor, mask_bits: Tensor) -> Tensor:
    refuse_meta_among_others("masked_apply", input, mask_bits)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@torch.library.register_fake("lth_fast::masked_apply_")
def _(tensor: Tensor, mask_bits: Tensor) -> None:
    refuse_meta_among_others("masked_apply_", tensor, mask_bits)


@torch.library.register_fake("lth_fast::masked_apply_each_")
def _(tensors: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> None:
    refuse_meta_among_others("masked_apply_each_", tensors, mask_bits)
