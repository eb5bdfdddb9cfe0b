"""Adam and AdamW in one fused pass that honours masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lth_fast.ops import adam_step_
from lth_fast.optim.fused import FusedOptimizer, Masks, learning_rate, of_one_kind


class _FusedAdam(FusedOptimizer):
    def _steps(self, group: dict[str, Any]) -> Iterable[Callable[[], None]]:
        # Parameters, gradients, first moments, second moments, their maxima, step counts.
        tensors: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
        # torch's own: refuses sparse gradients and makes the state where there is none yet.
        self._init_group(group, *tensors)  # type: ignore[attr-defined]
        for (_, dtype), members in of_one_kind(tensors[0]).items():
            self._check_dtype(dtype)
            yield partial(self._step, group, *([each[i] for i in members] if each else [] for each in tensors))

    def _step(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        masks = Masks(parameters)
        beta1, beta2 = group["betas"]
        adam_step_(
            parameters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            [self._step_count(*each) for each in zip(parameters, steps, strict=True)],
            masks.bits,
            **learning_rate(group["lr"]),
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            maximize=group["maximize"],
        )
        masks.applied()

    def _step_count(self, parameter: Tensor, step: Tensor) -> Tensor:
        """``step`` as a float on the parameter's device; torch keeps it on the CPU unless told otherwise."""
        if step.device != parameter.device or not step.is_floating_point():
            dtype = torch.promote_types(step.dtype, torch.float32)
            step = self.state[parameter]["step"] = step.to(parameter.device, dtype)
        return step


class Adam(_FusedAdam, torch.optim.Adam):
    """:class:`torch.optim.Adam` whose step is one native pass over the weights.

    Takes torch's arguments, ``param_groups`` and learning-rate schedulers; state dicts load both ways. Weights that a
    mask of our layers prunes, and their moments, are exactly 0 after every step, whatever their gradient. Denormal
    numbers count as 0. ``foreach``, ``fused`` and ``capturable`` are accepted and choose nothing.

    Raises:
        RuntimeError: ``differentiable`` is set: the step has no derivative.
    """


class AdamW(_FusedAdam, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`, Adam with decoupled weight decay; the rest as in :class:`Adam`."""
