"""Replicates of a small network trained side by side, each in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lth_fast.train.stepper import Stepper

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelStepper:
    """Takes the steps of several steppers at the same time.

    Meant for native ones, which leave Python to others: threads do what processes would. Each replicate gets the bits
    it would get alone.

    Args:
        steppers: One for each replicate, all at the same iteration, of models that have nothing in common.
    """

    name = "native in parallel"

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        self._steppers = list(steppers)

    def advance(self, steps: int) -> Tensor:
        """Take ``steps`` optimizer steps with every replicate.

        Returns:
            float32 ``[steps, replicates]``: the training loss of each batch, before its step.
        """
        return torch.stack(side_by_side(lambda stepper: stepper.advance(steps), self._steppers), dim=1)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What ``work`` makes of every item, each in a thread of its own; an error of one of them is raised."""
    # A new thread takes over torch's number of threads when it asks for it. Before that, MKL's products in it take all
    # cores, and have other bits with them.
    with ThreadPoolExecutor(max(1, len(items)), initializer=torch.get_num_threads) as pool:
        return list(pool.map(work, items))


def room_for_replicates() -> int:
    """How many replicates this process has cores for, if each takes as many threads as torch is set to; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // torch.get_num_threads())
