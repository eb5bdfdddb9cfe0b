"""A dense linear layer under a mask, whose backward zeroes the pruned places of the weight gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lth_fast.ops.masked_apply import reference as masked_apply_reference


def masked_linear(input: Tensor, weight: Tensor, bias: Tensor | None, mask_bits: Tensor | None) -> Tensor:
    """Compute ``input @ weight.T + bias`` for a weight that is already zero where it is pruned.

    The forward multiplies nothing by the mask: keeping the weight zero is the caller's part (``MaskedLinear`` does it).
    The backward applies the mask to the weight gradient in the call that computes it.

    Large float32 products are oneDNN's on AMD processors with AVX-512, where torch's own linear layer calls an MKL that
    computes with AVX2. Where ``torch.backends.mkldnn`` is disabled, they are left to MKL.

    Args:
        input: ``[..., in_features]``.
        weight: ``[out_features, in_features]``, the dtype and device of ``input``, zero where pruned.
        bias: ``[out_features]`` or ``None``.
        mask_bits: uint8 ``[ceil(weight.numel() / 8)]`` from :func:`~lth_fast.ops.pack_mask`; ``None`` leaves the weight
            gradient as it is, for an optimizer that masks it.

    Returns:
        ``[..., out_features]``. Autocast casts as it does for ``torch.nn.functional.linear``.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    return torch.ops.lth_fast.masked_linear(input, weight, bias, mask_bits)


def reference(input: Tensor, weight: Tensor, bias: Tensor | None, mask_bits: Tensor | None) -> Tensor:
    """Definition of :func:`masked_linear`: a linear layer over the masked weight, differentiable as it stands."""
    masked = weight if mask_bits is None else masked_apply_reference(weight, mask_bits)
    return torch.nn.functional.linear(input, masked, bias)


def input_grad_reference(grad_output: Tensor, weight: Tensor) -> Tensor:
    """Definition of the input gradient ``[..., in_features]``."""
    return grad_output @ weight


def weight_grad_reference(grad_output: Tensor, input: Tensor, mask_bits: Tensor | None) -> Tensor:
    """Definition of the weight gradient ``[out_features, in_features]``, 0 where pruned."""
    rows, inputs = torch.atleast_2d(grad_output).flatten(0, -2), torch.atleast_2d(input).flatten(0, -2)
    whole = rows.t() @ inputs
    return whole if mask_bits is None else masked_apply_reference(whole, mask_bits)


@torch.library.register_fake("lth_fast::masked_linear")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, mask_bits: Tensor | None) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@torch.library.register_fake("lth_fast::masked_linear_input_grad")
def _(grad_output: Tensor, weight: Tensor) -> Tensor:
    return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))


@torch.library.register_fake("lth_fast::masked_linear_weight_grad")
def _(grad_output: Tensor, input: Tensor, mask_bits: Tensor | None) -> Tensor:
    return grad_output.new_empty((grad_output.shape[-1], input.shape[-1]))
