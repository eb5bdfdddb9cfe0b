"""How to make a fresh optimizer, again and again: each level starts with one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lth_fast._names import match_name

_CLASSES: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
}

# These move nothing where the gradient has always been zero, so pruned weights stay zero through their step.
KEEP_ZEROS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop)


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
            groups.append((members, {key: value for key, value in group.items() if key != "params"}))
        accepted = inspect.signature(type(optimizer).__init__).parameters
        settings = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        return cls(type(optimizer), settings, tuple(groups))

    def build(self, model: nn.Module) -> Optimizer:
        """A fresh optimizer over ``model``'s parameters."""
        parameters = dict(model.named_parameters())
        if not self.groups:
            return self.kind(list(parameters.values()), **self.settings)
        groups = [{**settings, "params": [parameters[name] for name in names]} for names, settings in self.groups]
        return self.kind(groups, **self.settings)

    def describe(self) -> dict[str, Any]:
        """Name and settings, for records."""
        return {"name": self.kind.__name__, **self.settings}
