"""What the optimizers with a fused step share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lth_fast.nn.mask_changes import Holder, mask_changes
from lth_fast.nn.masked import MASKABLE


class FusedOptimizer(Optimizer):
    """Base of the optimizers whose step is one native pass over each group's parameters, under their masks.

    Stands before a class of ``torch.optim``, keeps its arguments, ``param_groups`` and state, and replaces ``step``.
    There is one implementation: ``foreach``, ``fused`` and ``capturable`` are accepted and choose nothing.
    """

    # torch.amp.GradScaler: it has to unscale the gradients itself, also where torch's class with fused=True would.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._refuse_differentiable({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            self._refuse_differentiable(group)
        super().__setstate__(state)
        for parameter in (each for group in self.param_groups for each in group["params"]):
            values = self.state.get(parameter, {})
            for name, value in values.items():
                if isinstance(value, Tensor) and 0 in value.stride():  # expanded, but a step writes to every number
                    values[name] = value.clone()

    def _refuse_differentiable(self, group: dict[str, Any]) -> None:
        if group.get("differentiable"):
            name = type(self).__name__
            raise RuntimeError(
                f"{name}: differentiable must be False, the step has no derivative; use torch.optim.{name}"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the gradients and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            RuntimeError: A gradient is sparse, or a parameter is neither float32, float64, bfloat16 nor float16. No
                parameter has been stepped then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # As torch.no_grad() does it, in half of its time: a small model's step takes no longer than a few dozen calls.
        enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            # What cannot be stepped is found before anything is.
            steps = [step for group in self.param_groups for step in self._steps(group)]
            for step in steps:
                step()
        finally:
            torch.set_grad_enabled(enabled)
        return loss

    def _steps(self, group: dict[str, Any]) -> Iterable[Callable[[], None]]:
        """The steps of the parameters of ``group`` that have a gradient, one for each kind.

        Raises:
            RuntimeError: One of them cannot be stepped.
        """
        raise NotImplementedError

    def _check_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in MASKABLE:
            expected = ", ".join(map(str, MASKABLE))
            raise RuntimeError(f"{type(self).__name__}: expected parameters of one of {expected}, got {dtype}")


def learning_rate(rate: float | Tensor) -> dict[str, Any]:
    """A group's ``lr`` as the ops take it: a tensor on a device stays there, for graphs that were captured with it."""
    if isinstance(rate, Tensor) and not rate.is_cpu:
        return {"lr": 0.0, "lr_tensor": rate.detach()}
    return {"lr": float(rate)}


def of_one_kind(parameters: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    """The indices of the parameters that one call of an op can take: one device, one dtype."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, parameter in enumerate(parameters):
        kinds.setdefault((parameter.device, parameter.dtype), []).append(i)
    return kinds


class Masks:
    """The masks on some parameters during one step.

    Attributes:
        bits: Per parameter the packed mask, ``None`` where nothing is pruned.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._holders: list[Holder] = []
        self.bits: list[Tensor | None] = []
        candidates = mask_changes.by_identity()
        for parameter in parameters:
            holders = mask_changes.holders_of(parameter) if id(parameter) in candidates else []
            if not holders:
                self.bits.append(None)
                continue
            # A shared weight survives where all of its layers keep it.
            self.bits.append(reduce(torch.bitwise_and, [holder.mask_bits for holder in holders]))
            self._holders += holders

    def applied(self) -> None:
        """The step has zeroed the pruned weights: the layers need not look again."""
        for holder in self._holders:
            holder.trust_weight()
