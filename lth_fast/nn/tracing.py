"""One node for a layer of ours in a graph of ``torch.fx``, as plain layers have."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError


def node_of(layer: nn.Module, input: Proxy) -> Any:
    """The call of ``layer`` in the graph that is being traced.

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
