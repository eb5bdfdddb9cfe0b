"""A module's tensors without the detour through ``nn.Module.__getattr__``.

That is Python that runs after the ordinary look-up has failed, once per parameter and buffer and call: together more
than the mask of a small layer costs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd import forward_ad

Model = TypeVar("Model", bound=nn.Module)
"""What a function that changes a model in place takes and returns: the class stays known to a type checker."""


def parameter(module: nn.Module, name: str) -> Any:
    """``module.name``: its own Parameter, or whatever stands for it (the result of a parametrization, a replica)."""
    held = module._parameters
    return held[name] if name in held else getattr(module, name)


def buffer(module: nn.Module, name: str) -> Any:
    """``module.name``: the module's own buffer."""
    held = module._buffers
    return held[name] if name in held else getattr(module, name)


def of_another_kind(input: torch.Tensor) -> bool:
    """Whether ``input`` is nested or sparse: torch's own operators take it, ours take strided memory."""
    return input.is_nested or input.layout is not torch.strided


def becomes_a_graph() -> bool:
    """Whether ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` makes a graph of what runs.

    A graph cannot look at version counters: layers always apply the mask there, as a differentiable copy.
    """
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``) or forward-mode differentiation is at work.

    Our operators cannot follow one: the layers compute by torch's own then.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
