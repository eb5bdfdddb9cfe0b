"""What layers of ours are to ``torch.fx`` and to ``torch.jit.script``."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError


def node_of(layer: nn.Module, input: Proxy) -> Any:
    """The call of ``layer`` in the graph that is being traced: one node, as of a plain layer.

    A tracer looks into every module that is not of ``torch.nn`` itself, and ours ask for values there that it has not.
    """
    tracer: Any = input.tracer
    path = tracer.path_of_module(layer)
    if not path:
        raise TraceError(
            f"{type(layer).__name__}: expected a layer inside of the model that is traced, got that model; put it into "
            "an nn.Sequential"
        )
    return tracer.create_proxy("call_module", path, (input,), {})


def refuse_scripting(layer: nn.Module) -> NoReturn:
    """Raise TypeError: TorchScript knows none of the Python that our layers are made of."""
    raise TypeError(
        f"{type(layer).__name__}: torch.jit.script takes plain layers, script lth_fast.nn.restore(copy.deepcopy(model))"
        "; torch.export and torch.jit.trace take this one"
    )
