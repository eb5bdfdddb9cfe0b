"""Why native code cannot compute what a network makes of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lth_fast.data import ResidentLoader
from lth_fast.nn import SparseLinear
from lth_fast.nn.attributes import transformed
from lth_fast.train.linear_chain import HOOKS, ChainLayer, chain_refusal, linear_chain


def native_outputs_refusal(model: nn.Module, loader: Any) -> str | None:
    """Why :func:`~lth_fast.train.native_outputs.native_outputs` cannot run ``model`` over ``loader``, or ``None``."""
    reason = chain_refusal(model)
    if reason is not None:
        return reason
    chain = linear_chain(model)
    return (
        surroundings_refusal()
        or precision_refusal()
        or parameters_refusal([parameter for link in chain for parameter in link.parameters], chain)
        or loader_refusal(loader)
        or _order_refusal(loader)
        or shapes_refusal(chain, loader)
    )


def surroundings_refusal() -> str | None:
    """What is set for all modules and operations, and native code would not follow."""
    if any(getattr(torch_modules, f"_global{hooks}") for hooks in HOOKS):
        return "there are hooks of all modules"
    modes = [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]
    if modes or _get_current_dispatch_mode_stack() or transformed():
        return "a mode or a transform follows every operation"
    return None


def precision_refusal(precision: str | None = None) -> str | None:
    if precision == "bf16" or torch.is_autocast_enabled("cpu"):
        return "the precision is not float32"
    return None


def parameters_refusal(parameters: Iterable[nn.Parameter], chain: Iterable[ChainLayer]) -> str | None:
    for parameter in parameters:
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float32 or not parameter.is_cpu:
            return "parameters are not plain float32 ones on the CPU"
        if parameter.layout is not torch.strided or not parameter.is_contiguous():
            return "some parameters have a memory order of their own"
    if any(getattr(link.layer, "read_directly", False) for link in chain):
        return "something reads a weight around its layer"
    return None


def loader_refusal(loader: object) -> str | None:
    if type(loader) is not ResidentLoader:
        return "the data does not lie in memory"
    if loader.augment:
        return "the data is augmented"
    if any(callable(value) for value in vars(loader).values()):
        return "the data has methods of its own"
    images, labels = loader.images, loader.labels
    as_made = (
        images.dtype == torch.uint8
        and images.dim() == 4
        and images.is_contiguous()
        and labels.dtype == torch.int64
        and labels.shape == images.shape[:1]
        and all(
            each.shape == (images.shape[1], 1, 1) and each.dtype == torch.float32
            for each in (loader.pixel_mean, loader.pixel_gain)
        )
    )
    return None if as_made else "images, labels, mean or gain are no longer as the loader made them"


def _order_refusal(loader: ResidentLoader) -> str | None:
    if loader.shuffle:
        return "the data is shuffled"
    if not loader.images.is_cpu or not loader.labels.is_cpu:
        return "the data does not lie on the CPU"
    return None


def shapes_refusal(chain: Sequence[ChainLayer], loader: Any) -> str | None:
    """Behind the checks of the loader. The operators' own are those of the eager steps' autograd."""
    features = loader.images[0].numel()
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
