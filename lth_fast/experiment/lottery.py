"""The lottery loop: train, prune the smallest weights, rewind, repeat (Frankle & Carbin 2019; rewinding: 1903.01611).

It asks the disk before it does anything, so resuming is not a feature beside the loop but the loop itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.level import stored, train_level
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.prune_step import prune_further
from lth_fast.prune import prunable
from lth_fast.record import Replicate


def run_replicate(experiment: Experiment, record: Replicate, monitor: Monitor) -> list[dict[str, Any]]:
    """Run, or go on with, one replicate.

    Args:
        experiment: What to run.
        record: Where it is kept. Levels that are complete there are not run again.
        monitor: Told of the progress.

    Returns:
        The summary of every level.
    """
    if record.initial() is None:
        record.save_initial(experiment.model.state_dict())
    summaries: list[dict[str, Any]] = []
    for number in range(experiment.rounds + 1):
        level = record.level(number)
        if not level.complete:
            if level.masks() is None:
                level.save_masks(_masks_of(experiment, record, number))
            train_level(experiment, record, level, monitor)
        summaries.append(stored(level.summary(), level))
        monitor.level_complete(summaries[-1])
    return summaries


def _masks_of(experiment: Experiment, record: Replicate, number: int) -> dict[str, Tensor]:
    """The masks of level ``number``: everything at level 0, later what pruning the end of the previous level leaves."""
    if number == 0:
        return {
            name: torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool, device="cpu")
            for name, layer in prunable(experiment.model).items()
        }
    previous = record.level(number - 1)
    return prune_further(
        experiment.model,
        stored(previous.weights("end"), previous),
        stored(previous.masks(), previous),
        experiment.prune_net,
        experiment.seeds.stream("mask", experiment.replicate, number),
    )
