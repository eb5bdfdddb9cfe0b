"""One step of stochastic gradient descent over a group of parameters, under their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.library import refuse_meta_among_others, serve_cuda
from lth_fast.ops.mask_packing import reference_unpack_mask


def sgd_step_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    mask_bits: Sequence[Tensor | None],
    *,
    lr: float,
    lr_tensor: Tensor | None = None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_step: bool,
) -> None:
    """Update parameters and momentum in place, in one pass, without autograd.

    The update is that of :class:`torch.optim.SGD`, operation by operation. Where a mask prunes, weight and momentum
    become an exact 0 and the gradient is of no consequence (not even NaN). On the CPU, denormal numbers count as 0 and
    the result depends neither on the number of threads nor on the instruction set; float16 and bfloat16 are computed in
    float32.

    Args:
        parameters: Tensors of any shapes, all of one dtype (float32, float64, bfloat16, float16) and device; or none.
        gradients: Of the shapes, dtype and device of ``parameters``.
        momentum_buffers: Likewise; empty without momentum.
        mask_bits: Per parameter the bits of its mask from :func:`~lth_fast.ops.pack_mask`, ``None``: nothing pruned.
        lr: Learning rate.
        lr_tensor: One number on the parameters' device that takes the place of ``lr``; a captured CUDA graph reads it
            at every replay.
        momentum: Kept share of the momentum.
        dampening: Share of the gradient that does not enter the momentum.
        weight_decay: Share of the weight that is added to its gradient.
        nesterov: Step along the gradient plus ``momentum`` times the momentum instead of along the momentum.
        maximize: Go up the gradient instead of down.
        first_step: The momentum becomes the gradient, undampened; what the buffers hold is not read.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    if not parameters and not gradients:  # by which torch finds the kernel
        return
    torch.ops.lth_fast.sgd_step_(
        parameters,
        gradients,
        momentum_buffers,
        mask_bits,
        lr=lr,
        lr_tensor=lr_tensor,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        first_step=first_step,
    )


@torch.no_grad()
def reference(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    mask_bits: Sequence[Tensor | None],
    *,
    lr: float,
    lr_tensor: Tensor | None = None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_step: bool,
) -> None:
    """Definition of :func:`sgd_step_`."""
    rate = lr if lr_tensor is None else lr_tensor.double().reshape(())
    for i, parameter in enumerate(parameters):
        working = torch.promote_types(parameter.dtype, torch.float32)
        weight = parameter.to(working)
        direction = gradients[i].to(working) * (-1 if maximize else 1)
        if weight_decay:  # an infinite weight has no zero share
            direction = direction + weight_decay * weight
        results = []
        if momentum_buffers:
            moving = direction
            if not first_step:
                moving = momentum * momentum_buffers[i].to(working) + (1 - dampening) * direction
            direction = direction + momentum * moving if nesterov else moving
            results.append((momentum_buffers[i], moving))
        results.append((parameter, weight - rate * direction))
        bits = mask_bits[i]
        for tensor, value in results:
            tensor.copy_(value if bits is None else value.where(reference_unpack_mask(bits, value.shape), 0.0))


serve_cuda("sgd_step_", reference)


@torch.library.register_fake("lth_fast::sgd_step_")
def _(*tensors: Sequence[Tensor | None], **settings: float | bool | Tensor | None) -> None:
    refuse_meta_among_others("sgd_step_", tensors, settings)
