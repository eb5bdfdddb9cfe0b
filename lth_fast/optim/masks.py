"""Keeping any torch optimizer from reviving pruned weights.

A masked layer hands out zero gradients at pruned places, so an optimizer that starts at zero state stays there. One
that is already at work when a mask is set carries momentum and moments that would move pruned weights for many steps.
A hook that torch runs before every optimizer step clears them once after a mask was set; otherwise it costs one
emptiness test.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lth_fast.nn.masked import MaskedLayer, every_masked_layer, recently_masked
from lth_fast.ops import masked_apply_


def apply_masks(optimizer: Optimizer) -> None:
    """Zero weight, gradient and optimizer state at every pruned place of the parameters ``optimizer`` holds.

    Needed by hand only for optimizers that do not derive from ``torch.optim.Optimizer``'s ``step`` (the others are seen
    to when a mask is set), or after loading an optimizer state from elsewhere.

    Args:
        optimizer: Any optimizer with ``param_groups`` and a ``state`` per parameter. Every state tensor that has the
            parameter's shape is masked.
    """
    _apply(optimizer, list(every_masked_layer))


def _apply(optimizer: Optimizer, layers: Iterable[MaskedLayer]) -> set[MaskedLayer]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    cleared = set()
    for layer in layers:
        weight = layer.weight
        if id(weight) not in held:
            continue
        layer.apply_mask()
        if weight.grad is not None:
            masked_apply_(weight.grad, layer.mask_bits)
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.dim() > 0:
                masked_apply_(value, layer.mask_bits)
        cleared.add(layer)
    return cleared


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if recently_masked:
        for layer in _apply(optimizer, list(recently_masked)):
            recently_masked.discard(layer)


register_optimizer_step_pre_hook(_before_step)
