"""Learning rate over a training: linear warm-up, then drops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepSchedule:
    """Factor on the learning rate by iteration.

    Attributes:
        warmup: Iterations over which the rate rises linearly to its full value (0: none).
        milestones: Iterations after which the rate is divided by ten, in ascending order.
    """

    warmup: int = 0
    milestones: tuple[int, ...] = ()

    def __call__(self, iteration: int) -> float:
        """The factor for the step that follows ``iteration`` updates; a level that starts late starts with its own."""
        rise = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return rise * 0.1 ** sum(iteration >= milestone for milestone in self.milestones)
