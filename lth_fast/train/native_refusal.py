"""Why native steps cannot take the place of eager ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizers

from lth_fast.optim import SGD, Adam, AdamW
from lth_fast.train.batches import Batches, ResidentBatches
from lth_fast.train.linear_chain import chain_refusal, linear_chain
from lth_fast.train.native_outputs_refusal import (
    loader_refusal,
    parameters_refusal,
    precision_refusal,
    shapes_refusal,
    surroundings_refusal,
)
from lth_fast.train.stacking import criterion_refusal
from lth_fast.train.stepper import EagerStepper


def native_refusal(stepper: EagerStepper) -> str | None:
    """Why :class:`NativeStepper` cannot take the steps of ``stepper``, or ``None``."""
    reason = chain_refusal(stepper.model)
    if reason is not None:
        return reason
    chain = linear_chain(stepper.model)
    parameters = [parameter for link in chain for parameter in link.parameters]
    return (
        surroundings_refusal()
        or _training_refusal()
        or precision_refusal(stepper.precision)
        or parameters_refusal(parameters, chain)
        or _trained_refusal(parameters)
        or _optimizer_refusal(stepper.optimizer, parameters)
        or (None if stepper.criterion is functional.cross_entropy else criterion_refusal(stepper.criterion))
        or _batches_refusal(stepper.batches)
        or shapes_refusal(chain, stepper.batches.loader)  # type: ignore[attr-defined]
    )


def _training_refusal() -> str | None:
    """What is set for all optimizers, or for autograd, and native steps would not follow."""
    own = "lth_fast."
    hooks = (
        hook
        for table in (torch_optimizers._global_optimizer_pre_hooks, torch_optimizers._global_optimizer_post_hooks)
        for hook in table.values()
    )
    if any(not getattr(hook, "__module__", "").startswith(own) for hook in hooks):
        return "there are hooks of all optimizers"
    if not torch.is_grad_enabled():
        return "gradients are switched off"
    if torch.is_anomaly_enabled():
        return "anomalies are looked for"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "there are hooks of all saved tensors"
    return None


def _trained_refusal(parameters: Iterable[nn.Parameter]) -> str | None:
    seen: set[int] = set()
    for parameter in parameters:
        if not parameter.requires_grad:
            return "some parameters are frozen"
        if parameter.is_inference():
            return "some parameters have a memory order of their own"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return "some parameters have hooks"
        if id(parameter) in seen:
            return "layers share a parameter"
        seen.add(id(parameter))
    return None


def _optimizer_refusal(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> str | None:
    kind = type(optimizer)
    if kind not in (Adam, AdamW, SGD):
        return f"{kind.__module__.partition('.')[0]}'s {kind.__name__} has no native step"
    own = {"step", "_steps", "zero_grad"} & vars(optimizer).keys()
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or own:
        return "the optimizer has hooks"
    if len(optimizer.param_groups) != 1:
        return f"the optimizer has {len(optimizer.param_groups)} groups of parameters"
    (group,) = optimizer.param_groups
    if sorted(map(id, group["params"])) != sorted(map(id, parameters)):
        return "the optimizer does not hold all parameters, each of them once"
    if isinstance(group["lr"], Tensor):
        return "the learning rate is a tensor"
    return None


def _batches_refusal(batches: Batches) -> str | None:
    if type(batches) is not ResidentBatches:
        return "the data does not lie in memory"
    if {"next", "skip"} & vars(batches).keys():
        return "the data has methods of its own"
    return loader_refusal(batches.loader)
