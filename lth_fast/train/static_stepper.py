"""A step as a plain function between tensors that stay in place, so that it can be recorded and replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast.nn import masked_layers
from lth_fast.optim import gradients_masked_by
from lth_fast.optim.masks import leave_weights_alone
from lth_fast.train.optimizers import KEEP_ZEROS
from lth_fast.train.precision import forward_precision
from lth_fast.train.static_batches import StaticBatches
from lth_fast.train.stepper import Schedule, base_rates

Action: TypeAlias = Callable[[], None]
Record: TypeAlias = Callable[[Action], Action]

# Losses the device holds before they are fetched.
LOG_STEPS = 1024

# Steps of each batch size before it is recorded: they create the optimizer's state and the libraries' work space, which
# must not happen inside a recording. They are steps of the training like all others.
WARM_UP = 3


class StaticStepper:
    """Takes steps by one function per batch size, recorded after its first calls.

    The masks of the model must stay as they are from the first step on.

    Args:
        model: Already on the training device.
        optimizer: Over the model's parameters. From the first step on it counts its steps on the device and, with a
            ``schedule``, has its learning rates there.
        criterion: From (outputs, labels) to the mean loss of a batch, ``[]``, or of each replicate's, ``[replicates]``.
        batches: Where the data comes from.
        loss_shape: Shape of what ``criterion`` returns.
        iteration: Steps taken so far.
        schedule: Factor on the learning rates by iteration.
        precision: Arithmetic of the forward.
        record: Turns a step into one that is replayed, without taking it; ``None``: the function itself is called,
            which gives the same losses on any device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor],
        batches: StaticBatches,
        loss_shape: tuple[int, ...] = (),
        iteration: int = 0,
        schedule: Schedule | None = None,
        precision: str = "float32",
        record: Record | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.iteration = iteration
        self.schedule = schedule
        self.precision = precision
        self._batches = batches
        self._record = record
        self._device = next(model.parameters()).device
        self._base_rates = base_rates(optimizer, schedule)
        self._factor: float | None = None
        self._batches_at: int | None = None
        self._called: Counter[int] = Counter()
        self._recorded: dict[int, Action] = {}
        self._losses = torch.zeros(LOG_STEPS, *loss_shape, device=self._device)
        self._logged = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._trusted = type(optimizer) in KEEP_ZEROS
        if self._trusted:
            leave_weights_alone(optimizer)
        self._layers = list(masked_layers(model).values())

    def advance(self, steps: int) -> Tensor:
        """Take ``steps`` optimizer steps; see :class:`~lth_fast.train.stepper.Stepper`.

        Returns:
            float32 ``[steps, *loss_shape]``: the losses, still on their way where the device computes behind the CPU.
        """
        with gradients_masked_by(self.optimizer):
            return self._advance(steps)

    def _advance(self, steps: int) -> Tensor:
        self.model.train()
        if self._batches_at != self.iteration:
            if self._batches_at is None:
                self._make_capturable()
            self._batches.start(self.iteration)
        pieces = []
        for start in range(0, steps, LOG_STEPS):
            self._logged.zero_()
            count = min(LOG_STEPS, steps - start)
            for _ in range(count):
                self._set_rates()
                self._take(self._batches.next_size())
                self.iteration += 1
            pieces.append(self._losses[:count].clone())
        self._batches_at = self.iteration
        return torch.cat(pieces)

    def _take(self, size: int) -> None:
        step = partial(self._step, size)
        if self._record is not None and size not in self._recorded and self._called[size] >= WARM_UP:
            self._recorded[size] = self._record(step)
        self._called[size] += 1
        self._recorded.get(size, step)()

    def _step(self, size: int) -> None:
        """One step on ``size`` images: the function that is recorded. It decides nothing by the values of tensors."""
        inputs, labels = self._batches.take(size)
        self.optimizer.zero_grad(set_to_none=True)
        with forward_precision(self.precision, self._device):
            losses = self.criterion(self.model(inputs), labels)
        (losses.sum() if losses.dim() else losses).backward()
        self.optimizer.step()
        for layer in self._layers:
            # Now, inside the recording: a replay leaves no trace in version counters, by which the layers would see in
            # the next forward that something wrote.
            if self._trusted:
                layer.trust_weight()
            else:
                layer.mask_what_was_written()
        self._losses.index_copy_(0, self._logged, losses.detach().float().unsqueeze(0))
        self._logged += 1

    def _set_rates(self) -> None:
        if self.schedule is None:
            return
        factor = self.schedule(self.iteration)
        if factor != self._factor:
            for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                group["lr"].fill_(rate * factor)
            self._factor = factor

    def _make_capturable(self) -> None:
        """Bring to the device what the optimizer would read from Python in every step.

        Not before the first step: a state that is loaded until then replaces the parameter groups.
        """
        for group in self.optimizer.param_groups:
            if self.schedule is not None:
                group["lr"] = torch.zeros((), device=self._device)
            if self._device.type == "cuda" and "capturable" in group:
                group["capturable"] = True
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(self._device)
