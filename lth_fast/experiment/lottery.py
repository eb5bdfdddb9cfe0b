"""The lottery loop: train, prune the smallest weights, rewind, repeat (Frankle & Carbin 2019; rewinding: 1903.01611).

It asks the disk before it does anything, so resuming is not a feature beside the loop but the loop itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lth_fast.experiment.branch import branch_masks
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.level import stored, train_in_parallel, train_level, train_together
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.prune_step import PruneStep
from lth_fast.experiment.stepping import whole_masks
from lth_fast.record import Replicate, Run
from lth_fast.train import ParallelStepper, ReplicateStepper
from lth_fast.train.parallel_stepper import room_for_replicates


def run_replicates(experiment: Experiment, run: Run, monitor: Monitor) -> list[dict[str, Any]]:
    """Run, or go on with, every replicate: one after the other, or level by level several or all at once.

    Returns:
        The summary of every level of every replicate, by replicate, with its number as ``replicate``.
    """
    count = experiment.replicates
    # Trained at once, every level is complete afterwards and is only read.
    at_once = experiment.stepper in (ReplicateStepper.name, ParallelStepper.name)
    if experiment.stepper == ReplicateStepper.name:
        _run_at_once(experiment, run, range(count), train_together, monitor)
    elif experiment.stepper == ParallelStepper.name:
        room = room_for_replicates()
        # A complete one would keep a core idle.
        open_ones = [number for number in range(count) if not _complete(run.replicate(number), experiment.rounds)]
        for first in range(0, len(open_ones), room):
            numbers = open_ones[first : first + room]
            monitor.replicate_begins(numbers[0], count, len(numbers))
            _run_at_once(experiment, run, numbers, train_in_parallel, monitor)
    summaries: list[dict[str, Any]] = []
    for number in range(count):
        if count > 1 and not at_once:
            monitor.replicate_begins(number, count)
        levels = run_replicate(
            experiment.of_replicate(number), run.replicate(number), Monitor() if at_once else monitor
        )
        summaries.extend({"replicate": number, **level} for level in levels)
    return summaries


def _complete(record: Replicate, rounds: int) -> bool:
    return all(record.level(number).complete for number in range(rounds + 1))


def _run_at_once(
    experiment: Experiment,
    run: Run,
    numbers: Sequence[int],
    train: Callable[[Sequence[Experiment], Sequence[Replicate], int, Monitor], None],
    monitor: Monitor,
) -> None:
    """``train`` every level of the replicates ``numbers`` together. One that completed a level stays out of it."""
    experiments = [experiment.of_replicate(number) for number in numbers]
    records = [run.replicate(number) for number in numbers]
    prunes = [PruneStep(own.prune_net) for own in experiments]
    for own, record in zip(experiments, records, strict=True):
        if record.initial() is None:
            record.save_initial(own.model.state_dict())
    for number in range(experiment.rounds + 1):
        open_ones = [index for index, record in enumerate(records) if not record.level(number).complete]
        for index in open_ones:
            level = records[index].level(number)
            if level.masks() is None:
                level.save_masks(_masks_of(experiments[index], records[index], number, prunes[index]))
        if open_ones:
            train([experiments[i] for i in open_ones], [records[i] for i in open_ones], number, monitor)
        for record in records:
            record.level(number).remove_checkpoint()
        first = records[0].level(number)
        monitor.level_complete(stored(first.summary(), first))


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
    prune = PruneStep(experiment.prune_net)
    summaries: list[dict[str, Any]] = []
    for number in range(experiment.rounds + 1):
        level = record.level(number)
        if not level.complete:
            if level.masks() is None:
                level.save_masks(_masks_of(experiment, record, number, prune))
            train_level(experiment, record, level, monitor)
        level.remove_checkpoint()
        summaries.append(stored(level.summary(), level))
        monitor.level_complete(summaries[-1])
    return summaries


def _masks_of(experiment: Experiment, record: Replicate, number: int, prune: PruneStep) -> dict[str, Tensor]:
    """The masks of level ``number``: everything at level 0, later what pruning the end of the previous level leaves."""
    if number == 0:
        return whole_masks(experiment.model, experiment.prune_bias)
    if experiment.ticket is not None:
        source = experiment.ticket.replicate(experiment.replicate).level(number)
        generator = experiment.seeds.generator("mask", experiment.replicate, number)
        return branch_masks(experiment.branch, stored(source.masks(), source), generator)
    previous = record.level(number - 1)
    masks = stored(previous.masks(), previous)
    state = stored(previous.weights("end"), previous)
    seed = experiment.seeds.stream("mask", experiment.replicate, number)
    # Layers that are kept whole stay in the count.
    return {**masks, **prune(experiment.model, state, masks, seed)}
