"""A stepper advances a model by optimizer steps. The loop above it sees nothing else of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast.nn import masked_layers
from lth_fast.train.batches import Batches
from lth_fast.train.optimizers import KEEP_ZEROS

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
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.batches = batches
        self.iteration = iteration
        self.schedule = schedule
        self._base_rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        first = next(model.parameters())
        self._device = first.device
        # Gradients come straight from the backward, zero where pruned; such an optimizer then leaves pruned weights at
        # zero and the layers need not look again.
        self._trusted = list(masked_layers(model).values()) if type(optimizer) in KEEP_ZEROS else []

    def advance(self, steps: int) -> Tensor:
        losses = torch.empty(steps, device=self._device)
        self.model.train()
        for step in range(steps):
            if self.schedule is not None:
                factor = self.schedule(self.iteration)
                for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                    group["lr"] = rate * factor
            inputs, labels = self.batches.next()
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.criterion(self.model(inputs), labels)
            loss.backward()
            self.optimizer.step()
            losses[step] = loss.detach()
            for layer in self._trusted:
                layer.trust_weight()
            self.iteration += 1
        return losses


@dataclass(frozen=True)
class StepperChoice:
    """Which stepper runs, and why a faster one does not.

    Attributes:
        name: The stepper that runs.
        refused: Reason by name, for each faster stepper that cannot run here.
    """

    name: str
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = "".join(f"; {name} not used: {reason}" for name, reason in self.refused.items())
        return f"{self.name}{reasons}"


def choose_stepper() -> StepperChoice:
    """The fastest stepper that can run. Eager steps run any module on any device and are the only kind so far."""
    return StepperChoice(EagerStepper.name)
