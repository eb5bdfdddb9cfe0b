"""One step of Adam or AdamW over a group of parameters, under their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.ops.library import refuse_meta_among_others, serve_cuda
from lth_fast.ops.mask_packing import reference_unpack_mask


def adam_step_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    mask_bits: Sequence[Tensor | None],
    *,
    lr: float,
    lr_tensor: Tensor | None = None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> None:
    """Update parameters, moments and step counts in place, in one pass, without autograd.

    Adam as in Kingma and Ba (2015), algorithm 1; AMSGrad as in Reddi et al. (2018); decoupled weight decay as in
    Loshchilov and Hutter (2019). The operations come in the order of torch's fused kernel. Where a mask prunes, weight
    and moments become an exact 0 and the gradient is of no consequence (not even NaN). On the CPU, denormal numbers
    count as 0 and the result depends neither on the number of threads nor on the instruction set; float16 and bfloat16
    are computed in float32.

    Args:
        parameters: Tensors of any shapes, all of one dtype (float32, float64, bfloat16, float16) and device; or none.
        gradients: Of the shapes, dtype and device of ``parameters``, like the next three.
        exp_avgs: First moments.
        exp_avg_sqs: Second moments.
        max_exp_avg_sqs: Their maxima so far, for AMSGrad; empty without it.
        steps: One float32 or float64 number each, on the parameter's device: steps taken before this one.
        mask_bits: Per parameter the bits of its mask from :func:`~lth_fast.ops.pack_mask`, ``None``: nothing pruned.
        lr: Learning rate.
        lr_tensor: One number on the parameters' device that takes the place of ``lr``; a captured CUDA graph reads it
            at every replay.
        beta1: Decay rate of the first moments, 0 to 1 (excluded).
        beta2: Decay rate of the second moments, likewise.
        eps: Added to the root of the second moment.
        weight_decay: Share of the weight that is added to its gradient or, decoupled, taken off it times ``lr``.
        decoupled_weight_decay: AdamW's.
        maximize: Go up the gradient instead of down.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
    """
    if not parameters and not gradients:  # by which torch finds the kernel
        return
    torch.ops.lth_fast.adam_step_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        steps,
        mask_bits,
        lr=lr,
        lr_tensor=lr_tensor,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        maximize=maximize,
    )


@torch.no_grad()
def reference(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    mask_bits: Sequence[Tensor | None],
    *,
    lr: float,
    lr_tensor: Tensor | None = None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> None:
    """Definition of :func:`adam_step_`."""
    rate = lr if lr_tensor is None else lr_tensor.double().reshape(())
    for i, parameter in enumerate(parameters):
        working = torch.promote_types(parameter.dtype, torch.float32)
        weight, first, second = (t.to(working) for t in (parameter, exp_avgs[i], exp_avg_sqs[i]))
        gradient = gradients[i].to(working) * (-1 if maximize else 1)
        if decoupled_weight_decay:
            weight = weight * (1 - rate * weight_decay)
        elif weight_decay:  # an infinite weight has no zero share
            gradient = gradient + weight_decay * weight
        step = steps[i].add_(1).double().reshape(())
        first = first.lerp(gradient, 1 - beta1)
        second = beta2 * second + (1 - beta2) * gradient * gradient
        variance = second
        if max_exp_avg_sqs:
            variance = torch.maximum(max_exp_avg_sqs[i].to(working), second)
        root = (variance / (1 - beta2**step)).sqrt()
        weight = weight - rate / (1 - beta1**step) * first / (root + eps)
        results = [(parameter, weight), (exp_avgs[i], first), (exp_avg_sqs[i], second)]
        if max_exp_avg_sqs:
            results.append((max_exp_avg_sqs[i], variance))
        bits = mask_bits[i]
        for tensor, value in results:
            tensor.copy_(value if bits is None else value.where(reference_unpack_mask(bits, value.shape), 0.0))


serve_cuda("adam_step_", reference)


@torch.library.register_fake("lth_fast::adam_step_")
def _(*tensors: Sequence[Tensor | None], **settings: float | bool | Tensor | None) -> None:
    refuse_meta_among_others("adam_step_", tensors, settings)
