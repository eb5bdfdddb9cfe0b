"""Whole training steps as CUDA graphs: recorded once per batch size, replayed without Python in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lth_fast.train.batches import Batches, ResidentBatches
from lth_fast.train.static_batches import StaticBatches
from lth_fast.train.static_stepper import Action, Record, StaticStepper
from lth_fast.train.stepper import Schedule


def capture(step: Action) -> Action:
    """Record what ``step`` launches on the current CUDA device in a graph, without running it; return its replay."""
    graph = torch.cuda.CUDAGraph()
    try:
        # The first: torch stays on the stream of a recording that fails. The mode: other threads (a data loader's that
        # pins memory, for instance) may go on using the device.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            step()
    except Exception as error:
        # Where a step cannot be recorded, ending the recording raises once more, and that error says less.
        raise error.__context__ or error from None
    return graph.replay


class GraphStepper(StaticStepper):
    """The steps of :class:`~lth_fast.train.stepper.EagerStepper` for data that lies on the device.

    One graph holds the gather of the batch with its augmentation, forward, backward, optimizer and the loss's place in
    a log. A smaller last batch of an epoch has a graph of its own. The order of the data, and with it every batch, is
    the eager one.

    Args:
        record: See :class:`StaticStepper`. The others are those of ``EagerStepper``.

    Raises:
        ValueError: It cannot run; :func:`batches_refusal` says so before.
    """

    name = "CUDA graph"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor],
        batches: Batches,
        iteration: int = 0,
        schedule: Schedule | None = None,
        precision: str = "float32",
        record: Record | None = capture,
    ) -> None:
        reason = batches_refusal(batches)
        if reason is not None or not isinstance(batches, ResidentBatches):
            raise ValueError(f"batches: {reason}")
        super().__init__(
            model,
            optimizer,
            criterion,
            StaticBatches([batches]),
            iteration=iteration,
            schedule=schedule,
            precision=precision,
            record=record,
        )


def batches_refusal(batches: Batches) -> str | None:
    """Why ``batches`` cannot be gathered inside a graph, or ``None``."""
    if not isinstance(batches, ResidentBatches):
        return f"the data comes from a {type(getattr(batches, 'loader', batches)).__name__}, batch by batch"
    if not (hasattr(batches.loader, "gather") and hasattr(batches.loader, "draws")):
        return f"a {type(batches.loader).__name__} does not gather its batches on the device"
    return None


def optimizer_refusal(optimizer: Optimizer) -> str | None:
    """Why steps of ``optimizer`` cannot be replayed, or ``None``.

    One that counts its steps in Python records without an error and then repeats the same step: only those that say
    that they can be captured are taken.
    """
    kind = type(optimizer)
    counts_no_steps = issubclass(kind, SGD) and kind.__module__.partition(".")[0] in ("torch", "lth_fast")
    if counts_no_steps or all("capturable" in group for group in optimizer.param_groups):
        return None
    return f"{type(optimizer).__name__} does not say that it is capturable"
