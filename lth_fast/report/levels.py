"""The summaries of a run, one row per level over its replicates: what tables and figures are made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lth_fast.record import Run


@dataclass(frozen=True)
class Spread:
    """A quantity over replicates.

    Attributes:
        mean: Mean of the n values; None if n is 0.
        sd: Sample standard deviation (n - 1 in the denominator); None if n < 2.
        n: Replicates that have a value.
    """

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the values that are not None."""
        present = [value for value in values if value is not None]
        return cls(
            statistics.fmean(present) if present else None,
            statistics.stdev(present) if len(present) > 1 else None,
            len(present),
        )


@dataclass(frozen=True)
class LevelResults:
    """One level over the replicates that completed it. Accuracies are on the test set, in percent.

    Attributes:
        level: 0 is the unpruned network.
        replicates: How many completed the level. A quantity that some of them lack has a smaller n.
        density: Share of weights kept, in percent.
        early_stop_iteration: Iteration of minimum validation loss.
        early_stop_accuracy: At that iteration.
        final_accuracy: After the last iteration.
        seconds: Duration of the level.
        iterations_per_second: While training, evaluation aside.
        error_barrier: Of a second copy (``--branch reorder``): the highest test error on the line between both, over
            the mean of its ends.
        distance: Of a second copy: Euclidean, between the parameters of both.
    """

    level: int
    replicates: int
    density: Spread
    early_stop_iteration: Spread
    early_stop_accuracy: Spread
    final_accuracy: Spread
    seconds: Spread
    iterations_per_second: Spread
    error_barrier: Spread
    distance: Spread


@dataclass(frozen=True)
class RunResults:
    """All complete levels of a run.

    Attributes:
        levels: By level; at least one.
        replicates: Replicates that were begun.
        complete: Complete levels of all replicates together.
        expected: What ``complete`` is at the end of the run; where its manifest does not tell, once every replicate
            begun has completed every level begun.
    """

    levels: list[LevelResults]
    replicates: int
    complete: int
    expected: int

    @property
    def is_copy(self) -> bool:
        """Whether the levels were compared with those of a first copy."""
        return any(level.distance.n for level in self.levels)


def collect(run: Run) -> RunResults:
    """Read the summaries of ``run``.

    Raises:
        ValueError: No level is complete, a summary is damaged, or the manifest was changed.
    """
    begun = [(replicate.number, level) for replicate in run.replicates() for level in replicate.levels()]
    numbers = sorted({level.number for _, level in begun})
    replicates = len({replicate for replicate, _ in begun})
    summaries: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
    for _, level in begun:
        if (summary := level.summary()) is not None:
            summaries[level.number].append(summary)
    levels = [_level_results(number, rows) for number, rows in summaries.items() if rows]
    if not levels:
        raise ValueError(f"{run.path} has no complete level yet ({len(begun)} begun), so there is nothing to report")
    asked = run.manifest().get("configuration", {})
    for name in ("replicates", "rounds"):
        if not isinstance(asked.get(name, 0), int):
            raise ValueError(
                f"{run.manifest_file}: configuration: {name}: expected a whole number, got {asked[name]!r}"
            )
    expected = asked.get("replicates", replicates) * (asked["rounds"] + 1 if "rounds" in asked else len(numbers))
    return RunResults(levels, replicates, sum(row.replicates for row in levels), expected)


def _level_results(level: int, summaries: list[dict[str, Any]]) -> LevelResults:
    def spread(field: str, unit: float = 1) -> Spread:
        values = (summary.get(field) for summary in summaries)
        return Spread.of(None if value is None else unit * value for value in values)

    return LevelResults(
        level=level,
        replicates=len(summaries),
        density=spread("density", 100),
        early_stop_iteration=spread("early_stop_iteration"),
        early_stop_accuracy=spread("early_stop_accuracy", 100),
        final_accuracy=spread("test_accuracy", 100),
        seconds=spread("seconds"),
        iterations_per_second=Spread.of(map(_iterations_per_second, summaries)),
        error_barrier=spread("error_barrier", 100),
        distance=spread("distance"),
    )


def _iterations_per_second(summary: dict[str, Any]) -> float | None:
    iterations, seconds = summary.get("iterations"), summary.get("train_seconds")
    return iterations / seconds if iterations and seconds else None
