"""Keeping any torch optimizer from reviving pruned weights.

A masked layer hands out zero gradients at pruned places, so an optimizer that starts at zero state stays there. One
that is already at work when a mask is set carries momentum and moments that would move pruned weights for many steps.
A hook that torch runs before every optimizer step clears them in the first one after a mask was set; in all others it
compares two numbers, and masks the gradients of weights that are known to be read around their layers. A second one,
behind every step, masks what the step wrote: not every optimizer maps zeros to zeros (Muon, LBFGS), and a gradient may
hold more than the layers gave.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lth_fast.nn.mask_changes import Holder, mask_changes
from lth_fast.ops import masked_apply_
from lth_fast.optim.gradients import MASK_IN_THE_STEP

# Numbers in an optimizer's ``__dict__``, where a look-up costs least, beside its ``id``: a copy follows masks anew.
_FOLLOWED = "_lth_fast_followed"  # (id, the newest change of masks it has followed)
_KEEPS_ZEROS = "_lth_fast_keeps_zeros"  # id
# What is masked behind the steps of each optimizer, as of a change of masks and a number of parameter groups.
_behind: weakref.WeakKeyDictionary[Optimizer, tuple[tuple[int, int], list[weakref.ref[Holder]]]]
_behind = weakref.WeakKeyDictionary()


def apply_masks(optimizer: Optimizer) -> None:
    """Zero weight, gradient and optimizer state at every pruned place of the parameters ``optimizer`` holds.

    Needed by hand only for optimizers that do not derive from ``torch.optim.Optimizer``'s ``step`` (the others are seen
    to when a mask is set), or after loading an optimizer state from elsewhere.

    Args:
        optimizer: Any optimizer with ``param_groups`` and a ``state`` per parameter. Every floating-point state tensor
            that has the parameter's shape is masked.
    """
    _apply(optimizer, mask_changes.since(0))


def leave_weights_alone(optimizer: Optimizer) -> None:
    """Mask no weights behind the steps of ``optimizer``, which keep zeros where they are in its caller's loop."""
    optimizer.__dict__[_KEEPS_ZEROS] = id(optimizer)


def _apply(optimizer: Optimizer, layers: Iterable[Holder]) -> None:
    for layer in _held(optimizer, layers):
        weight = layer.masked_parameter
        assert weight is not None
        layer.apply_mask()
        if weight.grad is not None:
            masked_apply_(weight.grad, layer.mask_bits)
        for value in optimizer.state.get(weight, {}).values():
            # Other types are codes of a quantised state, whose zero need not be the number 0.
            if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                masked_apply_(value, layer.mask_bits)


def _held(optimizer: Optimizer, layers: Iterable[Holder]) -> Iterator[Holder]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return (layer for layer in layers if id(layer.masked_parameter) in held)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    newest = mask_changes.newest
    owner, followed = optimizer.__dict__.get(_FOLLOWED, (0, 0))
    if followed != newest or owner != id(optimizer):
        _apply(optimizer, mask_changes.since(followed if owner == id(optimizer) else 0))
        _warn_of_replaced_parameters(optimizer)
        optimizer.__dict__[_FOLLOWED] = (id(optimizer), newest)
    if not mask_changes.read_directly:
        return None
    _mask_direct_gradients(optimizer)
    # args[0] is the optimizer itself.
    if len(args) > 1 and args[1] is not None:
        return (args[0], _then_masked(optimizer, args[1]), *args[2:]), kwargs
    if kwargs.get("closure") is not None:
        return args, {**kwargs, "closure": _then_masked(optimizer, kwargs["closure"])}
    return None


def _mask_direct_gradients(optimizer: Optimizer) -> None:
    for layer in _held(optimizer, mask_changes.held_directly()):
        weight = layer.masked_parameter
        if weight is not None and weight.grad is not None:
            masked_apply_(weight.grad, layer.mask_bits)


def _then_masked(optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
    def closure_and_masks() -> Any:
        loss = closure()
        _mask_direct_gradients(optimizer)
        return loss

    return closure_and_masks


def _warn_of_replaced_parameters(optimizer: Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    count = sum(mask_changes.was_replaced(parameter) for parameter in parameters)
    if count:
        warnings.warn(
            f"{type(optimizer).__name__} steps {count} of its {len(parameters)} parameters in vain: layers that have "
            "changed their form have new ones. Make the optimizer after lth_fast.nn.convert and restore",
            stacklevel=4,
        )


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if mask_changes.newest == 0 or type(optimizer) in MASK_IN_THE_STEP:
        return
    # A compiled step has a compiled forward behind it, which masks what it reads.
    if torch.compiler.is_compiling() or optimizer.__dict__.get(_KEEPS_ZEROS) == id(optimizer):
        return
    state = (mask_changes.newest, len(optimizer.param_groups))
    seen, layers = _behind.get(optimizer, (None, []))
    if seen != state:
        layers = [weakref.ref(layer) for layer in _held(optimizer, mask_changes.since(0))]
        _behind[optimizer] = (state, layers)
    for reference in layers:
        layer = reference()
        if layer is not None:
            layer.mask_what_was_written()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
