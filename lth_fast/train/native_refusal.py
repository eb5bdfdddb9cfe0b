"""Why native steps cannot take the place of eager ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lth_fast.data import ResidentLoader
from lth_fast.nn import SparseLinear
from lth_fast.nn.attributes import transformed
from lth_fast.optim import SGD, Adam, AdamW
from lth_fast.train.batches import Batches, ResidentBatches
from lth_fast.train.linear_chain import HOOKS, ChainLayer, chain_refusal, linear_chain
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
        _global_refusal()
        or _precision_refusal(stepper)
        or _parameters_refusal(parameters, chain)
        or _optimizer_refusal(stepper.optimizer, parameters)
        or (None if stepper.criterion is functional.cross_entropy else criterion_refusal(stepper.criterion))
        or _batches_refusal(stepper.batches)
        or _shapes_refusal(chain, stepper.batches)
    )


def _global_refusal() -> str | None:
    if any(getattr(torch_modules, f"_global{hooks}") for hooks in HOOKS):
        return "there are hooks of all modules"
    own = "lth_fast."
    hooks = (
        hook
        for table in (torch_optimizers._global_optimizer_pre_hooks, torch_optimizers._global_optimizer_post_hooks)
        for hook in table.values()
    )
    if any(not getattr(hook, "__module__", "").startswith(own) for hook in hooks):
        return "there are hooks of all optimizers"
    return _mode_refusal()


def _mode_refusal() -> str | None:
    """What the thread has set for the operations of torch, and native steps would not follow."""
    if not torch.is_grad_enabled():
        return "gradients are switched off"
    if torch.is_anomaly_enabled():
        return "anomalies are looked for"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "there are hooks of all saved tensors"
    modes = [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]
    if modes or _get_current_dispatch_mode_stack() or transformed():
        return "a mode or a transform follows every operation"
    return None


def _precision_refusal(stepper: EagerStepper) -> str | None:
    if stepper.precision == "bf16" or torch.is_autocast_enabled("cpu"):
        return "the precision is not float32"
    return None


def _parameters_refusal(parameters: Iterable[nn.Parameter], chain: Iterable[ChainLayer]) -> str | None:
    seen: set[int] = set()
    for parameter in parameters:
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float32 or not parameter.is_cpu:
            return "parameters are not plain float32 ones on the CPU"
        if not parameter.requires_grad:
            return "some parameters are frozen"
        if parameter.layout is not torch.strided or not parameter.is_contiguous() or parameter.is_inference():
            return "some parameters have a memory order of their own"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return "some parameters have hooks"
        if id(parameter) in seen:
            return "layers share a parameter"
        seen.add(id(parameter))
    if any(getattr(link.layer, "read_directly", False) for link in chain):
        return "something reads a weight around its layer"
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
    if type(batches) is not ResidentBatches or type(batches.loader) is not ResidentLoader:
        return "the data does not lie in memory"
    loader = batches.loader
    if loader.augment:
        return "the data is augmented"
    if any(callable(value) for value in vars(loader).values()) or {"next", "skip"} & vars(batches).keys():
        return "the data has methods of its own"
    factors = (loader.pixel_mean, loader.pixel_gain)
    shape = (loader.images.shape[1], 1, 1)
    if not loader.images.is_contiguous() or any((each.shape, each.dtype) != (shape, torch.float32) for each in factors):
        return "images, their mean or gain are no longer as the loader made them"
    return None


def _shapes_refusal(chain: Sequence[ChainLayer], batches: Batches) -> str | None:
    """Behind the checks of the batches. The operators' own are those of the eager steps' autograd."""
    features = batches.loader.images[0].numel()  # type: ignore[attr-defined]
    for link in chain:
        layer = link.layer
        if isinstance(layer, SparseLinear):
            outputs, inputs = layer.pattern.row_order.shape[-1], layer.pattern.column_order.shape[-1]
            fits = layer.values.shape == layer.pattern.columns.shape
        else:
            fits = layer.weight.dim() == 2
            outputs, inputs = layer.weight.shape if fits else (0, 0)
        if not fits or inputs != features or (layer.bias is not None and layer.bias.shape != (outputs,)):
            return "the layers do not fit images or each other"
        features = outputs
    return None
