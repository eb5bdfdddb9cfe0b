"""The results of a run as a picture: accuracy and speed of learning against density."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_fast._require import require
from lth_fast.record import Run
from lth_fast.report.levels import LevelResults, RunResults, Spread, collect

_EARLY_STOP = "#d1603d"
_FINAL = "#2a6f97"
_REFERENCE = "#555555"


def figure(run: Run) -> Path:
    """Draw ``report.png`` in the run's folder, replacing it atomically, and return its path.

    Left: test accuracy at early stop and after the last iteration. Right: the early-stop iteration. Both against
    density, which falls to the right on a logarithmic axis; the mean over replicates with a band of ± one sample
    standard deviation; dashed, the unpruned network.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: No level is complete.
    """
    results = collect(run)
    # Figure and canvas of their own: pyplot would change the backend and the open figures of a notebook.
    drawing = require("matplotlib.figure", "plot", "drawing a figure").Figure(figsize=(11, 5), layout="constrained")
    canvas = require("matplotlib.backends.backend_agg", "plot", "drawing a figure").FigureCanvasAgg(drawing)
    accuracy, iteration = drawing.subplots(1, 2)
    drawing.suptitle(f"{_title(run)}   ({_replicates(results)})", fontsize=13, parse_math=False)
    drawing.supxlabel(run.path.name, fontsize=8, color=_REFERENCE, parse_math=False)
    _draw_accuracy(accuracy, results.levels)
    _draw_iteration(iteration, results.levels)
    for axes in (accuracy, iteration):
        _set_density_axis(axes, [level.density.mean for level in results.levels if level.density.mean])
        _add_legend(axes)
    png = io.BytesIO()
    drawing.set_dpi(150)
    canvas.print_png(png)
    return run.save_report(png.getvalue())


def _title(run: Run) -> str:
    manifest = run.manifest()
    return f"{manifest['net']} on {manifest['dataset']}"


def _replicates(results: RunResults) -> str:
    counts = sorted({level.replicates for level in results.levels})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return f"{n}; mean ± sd" if counts[-1] > 1 else n


def _draw_accuracy(axes: Any, levels: Sequence[LevelResults]) -> None:
    _draw(axes, levels, [level.early_stop_accuracy for level in levels], _EARLY_STOP, "o", "at early stop")
    _draw(axes, levels, [level.final_accuracy for level in levels], _FINAL, "s", "after the last iteration")
    dense = levels[0].final_accuracy.mean if levels[0].level == 0 else None
    if dense is not None:
        _draw_reference(axes, dense, f"unpruned ({dense:.2f} %)")
    axes.set_title("Test accuracy")
    axes.set_ylabel("test accuracy (%)")


def _draw_iteration(axes: Any, levels: Sequence[LevelResults]) -> None:
    axes.set_title("Iteration of minimum validation loss")
    axes.set_ylabel("early-stop iteration")
    _draw(axes, levels, [level.early_stop_iteration for level in levels], _EARLY_STOP, "o", "early stop")
    dense = levels[0].early_stop_iteration.mean if levels[0].level == 0 else None
    if dense is not None:
        _draw_reference(axes, dense, f"unpruned ({dense:,.0f})")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _draw(
    axes: Any, levels: Sequence[LevelResults], spreads: Sequence[Spread], color: str, marker: str, label: str
) -> None:
    """A line through the means, broken where a level has no value, in a band of ± sd; nothing if no level has one."""
    if not any(spread.n for spread in spreads):
        return
    densities = [_number(level.density.mean) for level in levels]
    means = [_number(spread.mean) for spread in spreads]
    axes.plot(densities, means, color=color, marker=marker, markersize=4, linewidth=1.6, label=label)
    below = [_number(spread.mean) - (spread.sd or 0) for spread in spreads]
    above = [_number(spread.mean) + (spread.sd or 0) for spread in spreads]
    axes.fill_between(densities, below, above, color=color, alpha=0.18, linewidth=0)


def _draw_reference(axes: Any, height: float, label: str) -> None:
    axes.axhline(height, color=_REFERENCE, linestyle="--", linewidth=1, zorder=1, label=label)


def _set_density_axis(axes: Any, densities: Sequence[float]) -> None:
    """Logarithmic, falling to the right, labelled with the densities of evenly spaced levels."""
    axes.set_xscale("log")
    if densities:
        ticks = densities[:: math.ceil(len(densities) / 7)]
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        low, high = min(densities), max(densities)
        margin = max((high / low) ** 0.04, 1.05)
        axes.set_xlim(high * margin, low / margin)
    axes.set_xlabel("density (% of weights kept)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(axes: Any) -> None:
    if axes.lines:  # below the axes, where it can hide no curve
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_REFERENCE)
        axes.set_yticks([])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
