"""Comparing two sides in one run: they take turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is.

    Attributes:
        ours: Median seconds of our side.
        rival: Median seconds of the other side.
        ratio: rival / ours, of the medians.
        low, high: 95 % bootstrap interval of that ratio.
    """

    ours: float
    rival: float
    ratio: float
    low: float
    high: float

    def reaches(self, bar: float) -> bool:
        """Whether the interval does not lie wholly below ``bar``."""
        return self.high >= bar


def alternate(
    benchmark: Any, ours: Callable[[], object], rival: Callable[[], object], rounds: int = 15, repeat: int = 1
) -> Ratio:
    """Time both sides in turns; ours through pytest-benchmark's fixture, the rival in the set-up of each round.

    Args:
        benchmark: The fixture; its ``extra_info`` gets the rival's median, the ratio and its interval.
        ours: Called ``repeat`` times a round.
        rival: Likewise.
        rounds: Number of turns.
        repeat: Calls per turn, for work of less than about a millisecond.
    """
    rival_times: list[float] = []

    def time_rival() -> None:
        began = time.perf_counter()
        for _ in range(repeat):
            rival()
        rival_times.append((time.perf_counter() - began) / repeat)

    def our_turn() -> None:
        for _ in range(repeat):
            ours()

    benchmark.pedantic(our_turn, setup=time_rival, rounds=rounds, warmup_rounds=1)
    our_times = [value / repeat for value in benchmark.stats.stats.data]
    result = compare(our_times, rival_times[-len(our_times) :])
    benchmark.extra_info.update(vars(result), calls_per_round=repeat)
    return result


def compare(ours: list[float], rival: list[float]) -> Ratio:
    """The ratio of the medians and its bootstrap interval (1,000 resamples of the turns, seeded)."""
    draw = random.Random(0)
    turns = list(zip(ours, rival, strict=True))
    resampled = []
    for _ in range(1000):
        sample = draw.choices(turns, k=len(turns))
        resampled.append(statistics.median(b for _, b in sample) / statistics.median(a for a, _ in sample))
    resampled.sort()
    medians = statistics.median(ours), statistics.median(rival)
    return Ratio(*medians, medians[1] / medians[0], resampled[25], resampled[974])
