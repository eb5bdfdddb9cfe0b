"""A copy of a network that holds other weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lth_fast.nn import load_dense_state


def copy_with(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy of the plain ``model`` that holds ``state``, as :func:`lth_fast.nn.load_dense_state` loads it.

    The parameters that are loaded next get their memory in the copy and nothing more: to copy ResNet-50's first takes
    as long as to find a threshold among them.
    """
    memory: dict[int, nn.Parameter] = {}
    if _torch_alone_loads(model):
        for name, parameter in model.named_parameters():
            if type(parameter) is nn.Parameter and name in state:
                memory[id(parameter)] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
    copied = copy.deepcopy(model, memory)
    load_dense_state(copied, state)
    return copied


def _torch_alone_loads(model: nn.Module) -> bool:
    """Whether no code of others takes part in loading, which may leave a parameter as it is."""
    return type(model).load_state_dict is nn.Module.load_state_dict and all(
        type(module)._load_from_state_dict in _OF_TORCH and not module._load_state_dict_pre_hooks
        for module in model.modules()
    )


_OF_TORCH = (
    nn.Module._load_from_state_dict,
    nn.modules.batchnorm._NormBase._load_from_state_dict,
)
