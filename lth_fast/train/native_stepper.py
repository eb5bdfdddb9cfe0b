"""Whole training steps of fully connected networks in one native call, many at a time, without Python in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lth_fast.optim import SGD
from lth_fast.optim.fused import Masks
from lth_fast.train.linear_chain import linear_chain
from lth_fast.train.native_network import linear_network
from lth_fast.train.native_refusal import native_refusal
from lth_fast.train.stepper import EagerStepper


class NativeStepper(EagerStepper):
    """The steps of :class:`~lth_fast.train.stepper.EagerStepper` for a fully connected network and resident data.

    They call the same operators in the same order, so weights, optimizer state and losses are the eager ones bit for
    bit; the gradients are not kept. The first step is an eager one: it makes the optimizer's state. Where a reason
    against native steps has come up since, a hook for instance, all of them are eager ones. Ctrl-C is heard when the
    steps that were asked for are taken.

    Args:
        As of ``EagerStepper``.

    Raises:
        ValueError: It cannot run; :func:`~lth_fast.train.native_refusal.native_refusal` says so before.
    """

    name = "native"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reason = native_refusal(self)
        if reason is not None:
            raise ValueError(f"native steps: {reason}")
        self._has_stepped = False

    def _advance(self, steps: int) -> Tensor:
        if steps < 1 or native_refusal(self) is not None:
            return super()._advance(steps)
        self._chain = linear_chain(self.model)
        eager = 1 if self._lacks_state() else 0
        losses = [super()._advance(eager)]
        self._has_stepped |= eager > 0
        remaining = steps - eager
        if remaining:
            self.optimizer.zero_grad(set_to_none=True)
            masks = Masks(self._parameters())
            trainer = self._trainer(masks)
            while remaining:
                order, count = self.batches.skip(remaining)  # type: ignore[attr-defined]
                losses.append(trainer.advance(order, self._rates(count)))
                self.iteration += count
                remaining -= count
            masks.applied()
        return torch.cat(losses)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for link in self._chain for parameter in link.parameters]

    def _lacks_state(self) -> bool:
        """Whether the optimizer has yet to take a step, which makes its state, or brings a loaded one into form."""
        (group,), state = self.optimizer.param_groups, self.optimizer.state
        if group.get("momentum") == 0:
            return False
        names = ["momentum_buffer"] if isinstance(self.optimizer, SGD) else ["exp_avg", "exp_avg_sq", "step"]
        names += ["max_exp_avg_sq"] if group.get("amsgrad") else []
        return not self._has_stepped or not all(
            parameter in state and all(_is_in_form(state[parameter].get(name)) for name in names)
            for parameter in self._parameters()
        )

    def _rates(self, steps: int) -> list[float]:
        """The learning rates of the next ``steps`` steps; the optimizer's is the last of them then."""
        (group,), (base,) = self.optimizer.param_groups, self._base_rates
        if self.schedule is None:
            return [float(group["lr"])] * steps
        rates = [base * self.schedule(self.iteration + step) for step in range(steps)]
        group["lr"] = rates[-1]
        return rates

    def _trainer(self, masks: Masks) -> Any:
        """What takes the steps, over the tensors that model and optimizer have now."""
        trainer = linear_network(self._chain, self.batches.loader)  # type: ignore[attr-defined]
        (group,) = self.optimizer.param_groups
        kept = self.optimizer.state
        if isinstance(self.optimizer, SGD):
            momentum = (
                [kept[parameter]["momentum_buffer"] for parameter in self._parameters()] if group["momentum"] else []
            )
            trainer.use_sgd(
                momentum,
                masks.bits,
                float(group["momentum"]),
                float(group["dampening"]),
                float(group["weight_decay"]),
                bool(group["nesterov"]),
                bool(group["maximize"]),
            )
        else:
            beta1, beta2 = group["betas"]
            states = [kept[parameter] for parameter in self._parameters()]
            trainer.use_adam(
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
                [state["step"] for state in states],
                masks.bits,
                float(beta1),
                float(beta2),
                float(group["eps"]),
                float(group["weight_decay"]),
                bool(group["decoupled_weight_decay"]),
                bool(group["maximize"]),
            )
        return trainer


def _is_in_form(value: Any) -> bool:
    """Whether a native step takes ``value`` of an optimizer's state as it is; step counts may be whole numbers."""
    return isinstance(value, Tensor) and value.is_cpu and value.is_floating_point()
