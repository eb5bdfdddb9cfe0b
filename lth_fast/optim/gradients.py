"""Who masks the gradients: every layer its own, one pass over all of them, or the optimizer's step.

A masked layer zeroes the gradient of a pruned weight in the backward that computes it: a pass over memory per layer,
which whoever reads ``.grad`` relies on. The step of this package's optimizers reads the mask anyway and gives a pruned
weight and its moments the same zeros whatever its gradient, so in a loop where nobody else reads gradients the layers
can leave them as the dense product has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from lth_fast.nn.mask_changes import Holder, mask_changes
from lth_fast.nn.masked_parameter import MaskedParameter
from lth_fast.ops import masked_apply_each_
from lth_fast.optim.adam import Adam, AdamW
from lth_fast.optim.sgd import SGD

# A subclass may read gradients in a step of its own.
MASK_IN_THE_STEP = (Adam, AdamW, SGD)
"""The optimizers whose step gives pruned weights and their moments zeros, whatever the gradient."""


def mask_gradients(optimizer: Optimizer) -> None:
    """Zero the gradients at every pruned place of the parameters ``optimizer`` holds, in one pass over all of them."""
    gradients: dict[torch.device, list[Tensor]] = defaultdict(list)
    bits: dict[torch.device, list[Tensor]] = defaultdict(list)
    for parameter in _parameters(optimizer):
        if parameter.grad is not None:
            for holder in mask_changes.holders_of(parameter):
                gradients[parameter.device].append(parameter.grad)
                bits[parameter.device].append(holder.mask_bits)
    for device in gradients:
        masked_apply_each_(gradients[device], bits[device])


@contextmanager
def gradients_masked_by(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the layers leave the masking of gradients to the step of ``optimizer``, where it costs nothing.

    The ``.grad`` of a masked layer's weight is then the dense layer's. Whoever reads it inside, to clip it for
    instance, calls :func:`mask_gradients` before; behind the block it is masked. Masks are not to be set inside.
    Nothing changes for an optimizer that is not an :class:`Adam`, :class:`AdamW` or :class:`SGD` of this package, or
    where hooks of the optimizer or its parameters may read gradients.

    Args:
        optimizer: What takes the steps inside, over all parameters that carry a mask.
    """
    in_the_step = type(optimizer) in MASK_IN_THE_STEP and not _has_hooks(optimizer)
    layers = [layer for layer in _layers(optimizer) if layer.masks_gradient] if in_the_step else []
    for layer in layers:
        layer.masks_gradient = False
    try:
        yield
    finally:
        for layer in layers:
            layer.masks_gradient = True
        if layers:
            mask_gradients(optimizer)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _has_hooks(optimizer: Optimizer) -> bool:
    of_parameters = (
        parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in _parameters(optimizer)
    )
    return bool(optimizer._optimizer_step_pre_hooks) or any(of_parameters)


def _layers(optimizer: Optimizer) -> Iterator[Holder]:
    for parameter in _parameters(optimizer):
        for holder in mask_changes.holders_of(parameter):
            if not isinstance(holder, MaskedParameter):  # which needs its mask in the forward
                yield holder
