"""Which stepper runs: an ordered list of candidates, each with a reason where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lth_fast.train.graph_stepper import GraphStepper, batches_refusal, optimizer_refusal
from lth_fast.train.linear_chain import chain_refusal
from lth_fast.train.native_refusal import native_refusal as refusal_by_looks
from lth_fast.train.native_stepper import NativeStepper
from lth_fast.train.parallel_stepper import ParallelStepper
from lth_fast.train.reasons import first_line
from lth_fast.train.seeds import own_random_state
from lth_fast.train.static_stepper import WARM_UP
from lth_fast.train.stepper import EagerStepper, Stepper

# Losses of the same steps, replayed and eager, may differ by rounding, which training amplifies.
_SAME_LOSSES = 1e-2


# Makes a stepper of the given class, anew for each call, on a copy of what is to be trained.
Trial: TypeAlias = Callable[[type[EagerStepper] | type[GraphStepper]], Stepper]

STEPPERS_OF_THE_SAME_BITS = (EagerStepper.name, NativeStepper.name, ParallelStepper.name)
"""Names of steppers of which one may go on where another one stopped."""


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


def choose_stepper(candidates: dict[str, Callable[[], str | None]]) -> StepperChoice:
    """The first of ``candidates`` that can run, else eager steps, which run any module on any device.

    Args:
        candidates: By name, fastest first, a check that returns why this one cannot run, or ``None``.
    """
    refused: dict[str, str] = {}
    for name, check in candidates.items():
        reason = check()
        if reason is None:
            return StepperChoice(name, refused)
        refused[name] = reason
    return StepperChoice(EagerStepper.name, refused)


def device_refusal(device: torch.device) -> str | None:
    """Why steps cannot be replayed as CUDA graphs on ``device``, or ``None``."""
    return None if device.type == "cuda" else "the training is on the CPU"


def graph_refusal(device: torch.device, trial: Trial) -> str | None:
    """Why :class:`GraphStepper` cannot train this, or ``None``: it is tried out on a few steps.

    Recording fails where a model synchronises with the device. Where it decides in Python what to compute, recording
    succeeds and the replay repeats that one decision; the losses of a few steps show it.
    """
    reason = device_refusal(device)
    if reason is not None:
        return reason
    eager = trial(EagerStepper)
    assert isinstance(eager, EagerStepper)
    reason = batches_refusal(eager.batches) or optimizer_refusal(eager.optimizer)
    return reason or replay_refusal(eager.advance, lambda steps: trial(GraphStepper).advance(steps), device)


def native_refusal(device: torch.device, model: nn.Module, trial: Trial) -> str | None:
    """Why :class:`NativeStepper` cannot train ``model``, or ``None``: it takes a few of the eager steps, to the bit."""
    reason = f"the training is on {device.type}" if device.type != "cpu" else chain_refusal(model)
    if reason is not None:
        return reason
    eager = trial(EagerStepper)
    assert isinstance(eager, EagerStepper)
    reason = refusal_by_looks(eager)
    if reason is not None:
        return reason
    with own_random_state(device):
        expected, losses = (stepper.advance(WARM_UP) for stepper in (eager, trial(NativeStepper)))
    if not torch.allclose(losses, expected, rtol=0, atol=0, equal_nan=True):
        return f"native steps have other losses ({losses[-1]:.9g}, eager ones {expected[-1]:.9g})"
    return None


def replay_refusal(
    eager: Callable[[int], Tensor], replayed: Callable[[int], Tensor], device: torch.device
) -> str | None:
    """Why a stepper that replays its steps cannot stand in for the eager one, or ``None``.

    Args:
        eager: Takes so many steps and returns their losses.
        replayed: Likewise; what it raises is the reason.
        device: Where both compute.
    """
    steps = WARM_UP + 3
    with own_random_state(device):
        torch.manual_seed(0)
        expected = eager(steps)
        torch.manual_seed(0)
        try:
            losses = replayed(steps)
        except Exception as error:  # torch reports what cannot be recorded as errors of many classes
            return f"it cannot be recorded ({first_line(error)})"
    if not torch.allclose(losses, expected, rtol=_SAME_LOSSES, atol=_SAME_LOSSES, equal_nan=True):
        return f"replayed steps have other losses ({losses[-1]:.4g}, eager ones {expected[-1]:.4g})"
    return None
