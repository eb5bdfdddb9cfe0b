"""The results of a run as text."""

from __future__ import annotations

from collections.abc import Sequence

from lth_fast.record import Run
from lth_fast.report.levels import LevelResults, RunResults, Spread, collect


def table(run: Run) -> str:
    """One aligned line per complete level, below a line that says how much of the run is complete.

    With several replicates a cell is mean ± sample standard deviation; ``n`` counts the replicates that completed the
    level, and a cell that some of them have no value for says so. ``-`` means that nobody has one.

    Raises:
        ValueError: No level is complete.
    """
    results = collect(run)
    rows = [_header(results), *(_cells(level, results) for level in results.levels)]
    return "\n".join([_caption(run, results), *aligned(rows)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, its cells below each other and flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def cell(spread: Spread, digits: int, replicates: int) -> str:
    """Mean ± sample standard deviation; with ``n`` where not all of the ``replicates`` have a value."""
    if spread.mean is None:
        return "-"
    text = f"{spread.mean:.{digits}f}"
    if spread.sd is not None:
        text += f" ± {spread.sd:.{digits}f}"
    return text if spread.n == replicates else f"{text} (n={spread.n})"


def _caption(run: Run, results: RunResults) -> str:
    caption = f"{run.path.name}: {results.complete} of {results.expected} levels complete"
    if results.replicates > 1:
        caption += f" ({results.replicates} replicates; mean ± sample sd)"
    return caption


def _header(results: RunResults) -> list[str]:
    count = ["n"] if results.replicates > 1 else []
    return [
        "level",
        *count,
        "density %",
        "early-stop iteration",
        "accuracy % at early stop",
        "final accuracy %",
        *(["error barrier %", "distance"] if results.is_copy else []),
        "seconds",
        "iterations/s",
    ]


def _cells(level: LevelResults, results: RunResults) -> list[str]:
    compared = [cell(level.error_barrier, 2, level.replicates), cell(level.distance, 1, level.replicates)]
    return [
        str(level.level),
        *([str(level.replicates)] if results.replicates > 1 else []),
        "-" if level.density.mean is None else f"{level.density.mean:.2f}",  # set by the level, not by chance
        cell(level.early_stop_iteration, 0, level.replicates),
        cell(level.early_stop_accuracy, 2, level.replicates),
        cell(level.final_accuracy, 2, level.replicates),
        *(compared if results.is_copy else []),
        cell(level.seconds, 1, level.replicates),
        cell(level.iterations_per_second, 0, level.replicates),
    ]
