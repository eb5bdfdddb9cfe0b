"""Keeping any torch optimizer from reviving pruned weights.

A masked layer hands out zero gradients at pruned places, so an optimizer that starts at zero state stays there. One
that is already at work when a mask is set carries momentum and moments that would move pruned weights for many steps.
A hook that torch runs before every optimizer step clears them in the first one after a mask was set; in all others it
compares two numbers, and masks the gradients of weights that are known to be read around their layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lth_fast.nn.mask_changes import Holder, mask_changes
from lth_fast.ops import masked_apply_

# The newest change of masks that each optimizer has followed. A copy of an optimizer is not in here: it follows anew.
_followed: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()


def apply_masks(optimizer: Optimizer) -> None:
    """Zero weight, gradient and optimizer state at every pruned place of the parameters ``optimizer`` holds.

    Needed by hand only for optimizers that do not derive from ``torch.optim.Optimizer``'s ``step`` (the others are seen
    to when a mask is set), or after loading an optimizer state from elsewhere.

    Args:
        optimizer: Any optimizer with ``param_groups`` and a ``state`` per parameter. Every floating-point state tensor
            that has the parameter's shape is masked.
    """
    _apply(optimizer, mask_changes.since(0))


def _apply(optimizer: Optimizer, layers: Iterable[Holder]) -> None:
    for layer in _held(optimizer, layers):
        weight = layer.weight
        layer.apply_mask()
        if weight.grad is not None:
            masked_apply_(weight.grad, layer.mask_bits)
        for value in optimizer.state.get(weight, {}).values():
            # Other types are codes of a quantised state, whose zero need not be the number 0.
            if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                masked_apply_(value, layer.mask_bits)


def _held(optimizer: Optimizer, layers: Iterable[Holder]) -> Iterator[Holder]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return (layer for layer in layers if id(layer.weight) in held)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    newest, followed = mask_changes.newest, _followed.get(optimizer, 0)
    if followed != newest:
        _apply(optimizer, mask_changes.since(followed))
        _followed[optimizer] = newest
    if mask_changes.read_directly:
        for layer in _held(optimizer, mask_changes.read_directly):
            if layer.weight.grad is not None:
                masked_apply_(layer.weight.grad, layer.mask_bits)


register_optimizer_step_pre_hook(_before_step)
