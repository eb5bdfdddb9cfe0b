"""The results of a run as a picture: accuracy and speed of learning against density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_fast.record import Run
from lth_fast.report.drawing import (
    add_legend,
    blank,
    count_iterations,
    draw,
    draw_reference,
    name_barrier_axis,
    name_distance_axis,
    png,
    say_if_empty,
    set_density_axis,
)
from lth_fast.report.levels import LevelResults, RunResults, collect

_EARLY_STOP = "#d1603d"
_FINAL = "#2a6f97"


def figure(run: Run) -> Path:
    """Draw ``report.png`` in the run's folder, replacing it atomically, and return its path.

    Left: test accuracy at early stop and after the last iteration. Right: the early-stop iteration. Both against
    density, which falls to the right on a logarithmic axis; the mean over replicates with a band of ± one sample
    standard deviation; dashed, the unpruned network.

    Of a second copy (``--branch reorder``), left: the error barrier between both; right: the distance between them.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: No level is complete.
    """
    results = collect(run)
    drawing, left, right = blank(f"{_title(run)}   ({_replicates(results)})", run.path.name)
    if results.is_copy:
        draw(left, results.levels, [level.error_barrier for level in results.levels], _EARLY_STOP, "o", "error barrier")
        name_barrier_axis(left)
        draw(right, results.levels, [level.distance for level in results.levels], _FINAL, "s", "distance")
        name_distance_axis(right)
    else:
        _draw_accuracy(left, results.levels)
        _draw_iteration(right, results.levels)
    for axes in (left, right):
        set_density_axis(axes, [level.density.mean for level in results.levels if level.density.mean])
        add_legend(axes)
        say_if_empty(axes)
    return run.save_report(png(drawing))


def _title(run: Run) -> str:
    manifest = run.manifest()
    return f"{manifest['net']} on {manifest['dataset']}"


def _replicates(results: RunResults) -> str:
    counts = sorted({level.replicates for level in results.levels})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return f"{n}; mean ± sd" if counts[-1] > 1 else n


def _draw_accuracy(axes: Any, levels: Sequence[LevelResults]) -> None:
    draw(axes, levels, [level.early_stop_accuracy for level in levels], _EARLY_STOP, "o", "at early stop")
    draw(axes, levels, [level.final_accuracy for level in levels], _FINAL, "s", "after the last iteration")
    dense = levels[0].final_accuracy.mean if levels[0].level == 0 else None
    if dense is not None:
        draw_reference(axes, dense, f"unpruned ({dense:.2f} %)")
    axes.set_title("Test accuracy")
    axes.set_ylabel("test accuracy (%)")


def _draw_iteration(axes: Any, levels: Sequence[LevelResults]) -> None:
    draw(axes, levels, [level.early_stop_iteration for level in levels], _EARLY_STOP, "o", "early stop")
    dense = levels[0].early_stop_iteration.mean if levels[0].level == 0 else None
    if dense is not None:
        draw_reference(axes, dense, f"unpruned ({dense:,.0f})")
    count_iterations(axes)
