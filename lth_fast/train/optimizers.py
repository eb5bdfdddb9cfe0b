"""How to make a fresh optimizer, again and again: each level starts with one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from lth_fast._names import match_name
from lth_fast.ops.library import has_kernel
from lth_fast.optim import SGD, Adam, AdamW

# Not to be had by name: the base class, one whose step needs a closure, one for sparse gradients, one for matrices.
_UNFIT = (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam, torch.optim.Muon)

_CLASSES: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value not in _UNFIT
}

# These move nothing where the gradient has always been zero, so pruned weights stay zero through their step.
KEEP_ZEROS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop)

# One pass over the weights; the plain ones take a pass over memory per operation.
_OURS: dict[type[Optimizer], type[Optimizer]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}
# Torch's own, for what is not ours or has no kernel in this build.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)

# Their step treats a weight as part of a matrix.
_OF_MATRICES = (torch.optim.Adafactor, torch.optim.Muon)

_CPU = torch.device("cpu")


def is_elementwise(kind: type[Optimizer]) -> bool:
    """Whether optimizers of this class treat every weight by itself, whatever the shape it is stored in."""
    return kind in (*_CLASSES.values(), *_OURS.values()) and kind not in _OF_MATRICES


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of ``torch.optim`` that ``name`` means, in any case (``"adam"``).

    Raises:
        ValueError: None or several fit; the message lists those that exist.
    """
    return _CLASSES[match_name(name, _CLASSES, "optimizer")]


@dataclass(frozen=True)
class OptimizerRecipe:
    """An optimizer's class and settings, by parameter name, without its state.

    Attributes:
        kind: The optimizer class.
        groups: For each parameter group the names of its parameters and its own settings; empty: one group of all.
        settings: Settings for every group (``lr`` and the like).
    """

    kind: type[Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()

    @classmethod
    def named(
        cls, name: str, learn_rate: float | None = None, device: torch.device = _CPU, **others: Any
    ) -> OptimizerRecipe:
        """The fastest implementation of the optimizer called ``name``; without a ``learn_rate`` its class's own.

        Args:
            name: As :func:`optimizer_class` takes it.
            learn_rate: Learning rate.
            device: Where the parameters will be. Adam, AdamW and SGD are those of ``lth_fast.optim``; on CUDA, in a
                build without CUDA kernels, torch's fused ones.
            others: More settings of the class, e.g. ``momentum``. What is 0 or false may also be one it does not have.

        Raises:
            ValueError: As :func:`optimizer_class`; or the class has no such setting.
        """
        kind = optimizer_class(name)
        settings: dict[str, Any] = {} if learn_rate is None else {"lr": learn_rate}
        accepted = inspect.signature(kind).parameters
        for key, value in others.items():
            if key not in accepted:
                if value:
                    raise ValueError(f"--{key}: expected an optimizer that has it, got {kind.__name__}")
            elif value != accepted[key].default:  # AdamW's own weight decay is not 0
                settings[key] = value
        step = "sgd_step_" if kind is torch.optim.SGD else "adam_step_"
        if kind in _OURS and has_kernel(step, device):
            return cls(_OURS[kind], settings)
        return cls(kind, {**settings, "fused": True} if kind in _FUSED else settings)

    @classmethod
    def from_optimizer(cls, optimizer: Optimizer, model: nn.Module) -> OptimizerRecipe:
        """Read class and groups off ``optimizer`` as it was handed over; its state is not taken.

        Raises:
            ValueError: It holds a parameter that is not ``model``'s.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            try:
                members = tuple(names[id(parameter)] for parameter in group["params"])
            except KeyError:
                raise ValueError(
                    "optim: the optimizer holds a parameter that is not the model's; "
                    "make it from this model's parameters()"
                ) from None
            groups.append((members, {key: _python(value) for key, value in group.items() if key != "params"}))
        accepted = inspect.signature(type(optimizer).__init__).parameters
        settings = {key: _python(value) for key, value in optimizer.defaults.items() if key in accepted}
        return cls(type(optimizer), settings, tuple(groups))

    def build(self, model: nn.Module) -> Optimizer:
        """A fresh optimizer over ``model``'s parameters."""
        parameters = dict(model.named_parameters())
        if not self.groups:
            return self.kind(list(parameters.values()), **self.settings)
        groups = [{**settings, "params": [parameters[name] for name in names]} for names, settings in self.groups]
        return self.kind(groups, **self.settings)

    def describe(self) -> dict[str, Any]:
        """Class, its package, settings and groups as JSON can hold them, for records."""
        package = self.kind.__module__.partition(".")[0]
        described = {"name": self.kind.__name__, "package": package, **_plain(self.settings)}
        if self.groups:
            described["groups"] = [{"parameters": list(names), **_plain(own)} for names, own in self.groups]
        return described


def _python(value: Any) -> Any:
    """``value`` with NumPy's numbers (a rate of ``logspace``) as Python's, which checkpoints and records can hold."""
    if isinstance(value, tuple):
        return tuple(_python(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; a user's own optimizer may have settings of any kind, tensors for instance."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
