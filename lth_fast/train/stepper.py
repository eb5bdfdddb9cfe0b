"""A stepper advances a model by optimizer steps. The loop above it sees nothing else of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast.nn import masked_layers
from lth_fast.optim import gradients_masked_by
from lth_fast.optim.masks import leave_weights_alone
from lth_fast.train.batches import Batches
from lth_fast.train.loss import mean_loss
from lth_fast.train.optimizers import KEEP_ZEROS
from lth_fast.train.precision import forward_precision

Schedule = Callable[[int], float]


class Stepper(Protocol):
    """Attributes: ``name``, as records give it."""

    name: str

    def advance(self, steps: int) -> Tensor:
        """Take ``steps`` optimizer steps.

        Returns:
            float32 ``[steps]``: the training loss of each batch, before its step.
        """


class EagerStepper:
    """Steps any module through autograd, one batch at a time.

    Args:
        model: Already on the training device.
        optimizer: A torch optimizer over the model's parameters.
        criterion: Mean loss of a batch from (outputs, labels).
        batches: Started where the first step is to be taken.
        iteration: Steps taken so far; the schedule sees ``iteration`` for the next one.
        schedule: Factor on the optimizer's learning rates by iteration (from 0); ``None`` keeps them.
        precision: Arithmetic of the forward, see :func:`~lth_fast.train.precision.forward_precision`.
    """

    name = "eager"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor],
        batches: Batches,
        iteration: int = 0,
        schedule: Schedule | None = None,
        precision: str = "float32",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.batches = batches
        self.iteration = iteration
        self.schedule = schedule
        self.precision = precision
        self._base_rates = base_rates(optimizer, schedule)
        self._device = next(model.parameters()).device
        # Gradients come straight from the backward, zero where pruned; such an optimizer then leaves pruned weights at
        # zero and the layers need not look again.
        self._trusted = list(masked_layers(model).values()) if type(optimizer) in KEEP_ZEROS else []
        if self._trusted:
            leave_weights_alone(optimizer)

    def advance(self, steps: int) -> Tensor:
        with gradients_masked_by(self.optimizer):
            return self._advance(steps)

    def _advance(self, steps: int) -> Tensor:
        losses = torch.empty(steps, device=self._device)
        self.model.train()
        for step in range(steps):
            if self.schedule is not None:
                factor = self.schedule(self.iteration)
                for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                    group["lr"] = rate * factor
            inputs, labels = self.batches.next()
            self.optimizer.zero_grad(set_to_none=True)
            with forward_precision(self.precision, self._device):
                loss = mean_loss(self.criterion, self.model(inputs), labels)
            loss.backward()
            self.optimizer.step()
            losses[step] = loss.detach()
            for layer in self._trusted:
                layer.trust_weight()
            self.iteration += 1
        return losses


def base_rates(optimizer: Optimizer, schedule: Schedule | None) -> list[float]:
    """The learning rate of each parameter group before ``schedule``.

    A schedule overwrites ``lr``. So the rate is noted in the group, under the name that torch's schedulers give it: it
    is part of the optimizer's state dict, and whoever goes on from one does not scale a rate that was scaled before.
    """
    if schedule is not None:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
