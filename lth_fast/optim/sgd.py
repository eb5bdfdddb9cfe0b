"""Stochastic gradient descent in one fused pass that honours masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lth_fast.ops import sgd_step_
from lth_fast.optim.fused import FusedOptimizer, Masks, learning_rate


class SGD(FusedOptimizer, torch.optim.SGD):
    """:class:`torch.optim.SGD` whose step is one native pass over the weights; the rest as in ``Adam``.

    Raises:
        RuntimeError: ``differentiable`` is set: the step has no derivative.
    """

    def _steps(self, group: dict[str, Any]) -> Iterable[Callable[[], None]]:
        has_momentum = group["momentum"] != 0
        # What one call of the op can take: one kind, and either all with momentum from earlier steps or all without. A
        # parameter whose first gradient comes later than the others' starts its momentum then.
        calls: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        state = self.state
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise RuntimeError("SGD does not support sparse gradients; use torch.optim.SGD for this parameter")
            momentum = state[parameter].get("momentum_buffer") if has_momentum else None
            first_step = has_momentum and momentum is None
            kind = (parameter.device, parameter.dtype, first_step)
            call = calls.get(kind)
            if call is None:
                self._check_dtype(parameter.dtype)
                call = calls[kind] = ([], [], [])
            parameters, gradients, momentum_buffers = call
            parameters.append(parameter)
            gradients.append(gradient)
            if has_momentum:
                momentum_buffers.append(torch.empty_like(parameter) if momentum is None else momentum)
        return [partial(self._step, group, first_step, *call) for (*_, first_step), call in calls.items()]

    def _step(
        self,
        group: dict[str, Any],
        first_step: bool,
        parameters: list[Tensor],
        gradients: list[Tensor],
        momentum_buffers: list[Tensor],
    ) -> None:
        masks = Masks(parameters)
        sgd_step_(
            parameters,
            gradients,
            momentum_buffers,
            masks.bits,
            **learning_rate(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            first_step=first_step,
        )
        masks.applied()
        if first_step:
            for parameter, momentum in zip(parameters, momentum_buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = momentum
