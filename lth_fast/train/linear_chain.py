"""Networks that are a chain of linear layers, as native steps train them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from lth_fast.nn import MaskedLinear, SparseLinear

FORMS: dict[type[nn.Module], str] = {nn.Linear: "dense", MaskedLinear: "masked", SparseLinear: "sparse"}
"""The form of a linear layer by its class."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""


@dataclass(frozen=True)
class ChainLayer:
    """One linear layer of a network that is a chain of them.

    Attributes:
        layer: An ``nn.Linear``, ``MaskedLinear`` or ``SparseLinear``.
        relu: Whether a ReLU follows.
    """

    layer: Any
    relu: bool

    @property
    def weight(self) -> nn.Parameter:
        """What the optimizer steps: the weight, or the values of a sparse layer."""
        weight: nn.Parameter = self.layer.values if isinstance(self.layer, SparseLinear) else self.layer.weight
        return weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias."""
        return [self.weight] if self.layer.bias is None else [self.weight, self.layer.bias]


def linear_chain(model: nn.Module) -> list[ChainLayer]:
    """The linear layers of ``model`` from the images to the logits.

    Raises:
        ValueError: It is no chain of a ``Flatten`` and linear layers with ReLU between them; the message is the reason.
    """
    chain: list[ChainLayer] = []
    flat = False
    for module in _in_turn(model):
        kind = type(module)
        if kind in FORMS:
            if not flat:
                raise ValueError(f"no Flatten stands before the {kind.__name__}")
            chain.append(ChainLayer(module, relu=False))
        elif kind is nn.ReLU and chain and not chain[-1].relu:
            chain[-1] = ChainLayer(chain[-1].layer, relu=True)
        elif isinstance(module, nn.Flatten) and kind is nn.Flatten and not flat:
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"the network has a {module}")
            flat = True
        elif kind is not nn.Identity:
            plain: type = getattr(kind, "plain_class", kind)
            raise ValueError(f"the network has a {plain.__name__} where a linear layer is expected")
    if not chain:
        raise ValueError("the network has no linear layer")
    return chain


def chain_refusal(model: nn.Module) -> str | None:
    """Why ``model`` is no chain of linear layers, or ``None``."""
    try:
        linear_chain(model)
    except ValueError as error:
        return str(error)
    return None


def _in_turn(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of ``model`` in the order in which its input passes through them."""
    reason = _touched(model)
    if reason is not None:
        raise ValueError(reason)
    kind = type(model)
    # Not by children(), which leaves out a layer that stands there a second time.
    children = list(model._modules.values())
    if kind.__module__.startswith("lth_fast.models."):
        children = [child for child in children if not isinstance(child, nn.CrossEntropyLoss)]
    if kind is nn.Sequential or (kind.__module__.startswith("lth_fast.models.") and len(children) == 1):
        for child in children:
            if child is None:
                raise ValueError(f"a {kind.__name__} has a place without a layer")
            yield from _in_turn(child)
    elif kind.__module__.startswith(("torch.nn.modules.", "lth_fast.")):
        yield model
    else:
        raise ValueError(f"a {kind.__name__} computes in Python")


def _touched(module: nn.Module) -> str | None:
    """What a user has done to ``module`` that its native twin would leave out, or ``None``."""
    name = type(module).__name__
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        return f"a {name} has hooks"
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return f"a {name} has a forward of its own"
    return None
