"""Stochastic gradient descent in one fused pass that honours masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lth_fast.ops import sgd_step_
from lth_fast.optim.fused import FusedOptimizer, Masks, learning_rate, of_one_kind


class SGD(FusedOptimizer, torch.optim.SGD):
    """:class:`torch.optim.SGD` whose step is one native pass over the weights; the rest as in ``Adam``.

    Raises:
        RuntimeError: ``differentiable`` is set: the step has no derivative.
    """

    def _step_group(self, group: dict[str, Any]) -> None:
        with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
        for members in of_one_kind(with_gradient):
            parameters = [with_gradient[i] for i in members]
            if group["momentum"] == 0:
                self._update(group, parameters, [], first_step=False)
                continue
            # A parameter whose first gradient comes later than the others' starts its momentum then.
            fresh = [p for p in parameters if self.state[p].get("momentum_buffer") is None]
            running = [p for p in parameters if self.state[p].get("momentum_buffer") is not None]
            for parameter in fresh:
                self.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
            for some, first_step in ((fresh, True), (running, False)):
                if some:
                    buffers = [self.state[p]["momentum_buffer"] for p in some]
                    self._update(group, some, buffers, first_step)

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], momentum_buffers: list[Tensor], first_step: bool
    ) -> None:
        masks = Masks(parameters)
        sgd_step_(
            parameters,
            [_dense_gradient(parameter) for parameter in parameters],
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


def _dense_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise RuntimeError("SGD does not support sparse gradients; use torch.optim.SGD for this parameter")
    return gradient
