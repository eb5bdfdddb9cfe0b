"""Replicates of a small network trained at once: one step launches the work of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from lth_fast.train.batches import ResidentBatches
from lth_fast.train.stacking import cross_entropy, optimizer_refusal, stack
from lth_fast.train.static_batches import StaticBatches
from lth_fast.train.static_stepper import Record, StaticStepper
from lth_fast.train.stepper import Schedule


class ReplicateStepper(StaticStepper):
    """Steps several networks of one shape, each with its own weights, masks, order of the data and optimizer state.

    Weights, gradients and optimizer state have a leading axis of replicates; the products are batched. Each replicate
    gets what it would get alone, up to rounding. ``networks`` hold the current weights at any time.

    Args:
        networks: On the training device, as :func:`~lth_fast.train.stacking.stacking_refusal` allows, under their
            masks.
        make_optimizer: Makes the optimizer of the stacked network, of a class that
            :func:`~lth_fast.train.stacking.optimizer_refusal` allows.
        batches: One for each network, of the same loader.
        iteration, schedule, precision, record: See :class:`StaticStepper`. Precision ``bf16`` is not to be had.

    Raises:
        ValueError: The numbers of networks and batches differ, or optimizer or precision are others.
    """

    name = "replicates at once"

    def __init__(
        self,
        networks: Sequence[nn.Module],
        make_optimizer: Callable[[nn.Module], Optimizer],
        batches: Sequence[ResidentBatches],
        iteration: int = 0,
        schedule: Schedule | None = None,
        precision: str = "float32",
        record: Record | None = None,
    ) -> None:
        if len(networks) != len(batches):
            raise ValueError(f"batches: expected one for each of {len(networks)} networks, got {len(batches)}")
        if precision == "bf16":
            raise ValueError("precision: expected float32 or tf32, got 'bf16'")
        stacked = stack(networks)
        optimizer = make_optimizer(stacked)
        reason = optimizer_refusal(type(optimizer))
        if reason is not None:
            raise ValueError(f"make_optimizer: {reason}")
        super().__init__(
            stacked,
            optimizer,
            cross_entropy,
            StaticBatches(batches, stacked=True),
            loss_shape=(len(networks),),
            iteration=iteration,
            schedule=schedule,
            precision=precision,
            record=record,
        )
