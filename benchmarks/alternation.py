"""Comparing two sides in one run: they take turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_SECONDS_OF_A_TURN = 2e-3


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
    benchmark: Any,
    ours: Callable[[], object],
    rival: Callable[[], object],
    rounds: int = 15,
    repeat: int = 1,
    warm_up: bool = True,
) -> Ratio:
    """Time two sides in turns; ours through pytest-benchmark's fixture, the rival in the set-up of each round.

    Args:
        benchmark: The fixture; its ``extra_info`` gets the rival's median, the ratio and its interval.
        ours: Called ``repeat`` times a round.
        rival: Likewise.
        rounds: Number of turns.
        repeat: Calls per turn of either side, of :func:`calls_in_a_turn` for instance.
        warm_up: Whether a turn that does not count goes first; work of many seconds does without.
    """
    result = take_turns(benchmark, ours, {"rival": rival}, rounds, repeat, warm_up)["rival"]
    del benchmark.extra_info["rivals"]
    benchmark.extra_info.update(vars(result))
    return result


def in_turns(ours: Callable[[], object], rival: Callable[[], object], rounds: int = 15) -> Ratio:
    """As :func:`alternate` without the fixture, for many small comparisons in one test; 2 ms or more a turn."""
    repeat = calls_in_a_turn(rival)
    turns = [(_seconds(rival, repeat), _seconds(ours, repeat)) for _ in range(rounds + 1)][1:]
    return compare([ours for _, ours in turns], [rival for rival, _ in turns])


def calls_in_a_turn(work: Callable[[], object], least: int = 1) -> int:
    """How many calls of ``work`` take 2 ms, or ``least`` if that is more.

    The first call of a turn waits for its code and data, which the other sides' turns pushed out of the caches: after
    five products of 512 by 512, a plain ``nn.Linear(16, 16)`` takes 60 us instead of 5
    (``benchmarks/notes/sparse_linear.md``).
    """
    return max(least, round(_SECONDS_OF_A_TURN / min(_seconds(work, 1) for _ in range(3))))


def _seconds(work: Callable[[], object], repeat: int) -> float:
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - began) / repeat


def take_turns(
    benchmark: Any,
    ours: Callable[[], object],
    rivals: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    repeat: int = 1,
    warm_up: bool = True,
) -> dict[str, Ratio]:
    """As :func:`alternate`, against several rivals at once: all of them have one turn in every round.

    Returns:
        The ratio by rival; ``extra_info["rivals"]`` holds them too.
    """
    rival_times: dict[str, list[float]] = {name: [] for name in rivals}

    def time_rivals() -> None:
        for name, rival in rivals.items():
            rival_times[name].append(_seconds(rival, repeat))

    def our_turn() -> None:
        for _ in range(repeat):
            ours()

    benchmark.pedantic(our_turn, setup=time_rivals, rounds=rounds, warmup_rounds=int(warm_up))
    our_times = [value / repeat for value in benchmark.stats.stats.data]
    results = {name: compare(our_times, times[-len(our_times) :]) for name, times in rival_times.items()}
    benchmark.extra_info.update(rivals={name: vars(result) for name, result in results.items()}, calls_per_round=repeat)
    return results


def take_turns_with_one(
    benchmark: Any,
    ours: Mapping[str, Callable[[], object]],
    rival: Callable[[], object],
    rounds: int = 15,
    warm_up: bool = True,
) -> dict[str, Ratio]:
    """As :func:`alternate`, for several of ours against one rival, which is timed by the fixture.

    Returns:
        The ratio by the name of ours; ``extra_info["rivals"]`` holds them too.
    """
    times: dict[str, list[float]] = {name: [] for name in ours}

    def time_ours() -> None:
        for name, work in ours.items():
            times[name].append(_seconds(work, 1))

    benchmark.pedantic(rival, setup=time_ours, rounds=rounds, warmup_rounds=int(warm_up))
    results = {name: compare(found[-rounds:], benchmark.stats.stats.data) for name, found in times.items()}
    benchmark.extra_info.update(rivals={name: vars(result) for name, result in results.items()})
    return results


def check_bars(benchmark: Any, results: Mapping[str, Ratio], bars: Mapping[str, float]) -> None:
    """Note the bars beside the results, then fail, naming every rival whose bar is not reached."""
    for name, bar in bars.items():
        if name in results:
            benchmark.extra_info["rivals"][name]["bar"] = bar
    missed = [
        f"{results[name].ratio:.2f} times as fast, {name} (interval to {results[name].high:.2f}), expected {bar}"
        for name, bar in bars.items()
        if name in results and not results[name].reaches(bar)
    ]
    assert not missed, "; ".join(missed)


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
