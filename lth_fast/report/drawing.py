"""What the figures of runs are drawn with: two axes of a quantity against density."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from lth_fast._require import require
from lth_fast.report.levels import LevelResults, Spread

_REFERENCE = "#555555"


def blank(title: str, caption: str) -> tuple[Any, Any, Any]:
    """A figure and its two axes, left and right.

    Raises:
        ImportError: matplotlib is missing.
    """
    # Figure and canvas of their own: pyplot would change the backend and the open figures of a notebook.
    drawing = require("matplotlib.figure", "plot", "drawing a figure").Figure(figsize=(11, 5), layout="constrained")
    require("matplotlib.backends.backend_agg", "plot", "drawing a figure").FigureCanvasAgg(drawing)
    left, right = drawing.subplots(1, 2)
    drawing.suptitle(title, fontsize=13, parse_math=False)
    drawing.supxlabel(caption, fontsize=8, color=_REFERENCE, parse_math=False)
    return drawing, left, right


def png(drawing: Any) -> bytes:
    """The figure as it is written to a file."""
    content = io.BytesIO()
    drawing.set_dpi(150)
    drawing.canvas.print_png(content)
    return content.getvalue()


def draw(
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


def draw_reference(axes: Any, height: float, label: str) -> None:
    """A dashed line at ``height``."""
    axes.axhline(height, color=_REFERENCE, linestyle="--", linewidth=1, zorder=1, label=label)


def count_iterations(axes: Any) -> None:
    """Make the vertical axis one of early-stop iterations, from 0."""
    axes.set_title("Iteration of minimum validation loss")
    axes.set_ylabel("early-stop iteration")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def name_barrier_axis(axes: Any) -> None:
    """Make the vertical axis one of error barriers, from 0, with the height below which 1912.05671 speaks of none."""
    if axes.lines:
        draw_reference(axes, 2, "stable below 2 %")
    axes.set_title("Error barrier between two orders of the data")
    axes.set_ylabel("error barrier (% of the test set)")
    axes.set_ylim(bottom=0)


def name_distance_axis(axes: Any) -> None:
    """Make the vertical axis one of distances, from 0."""
    axes.set_title("Distance between two orders of the data")
    axes.set_ylabel("Euclidean distance")
    axes.set_ylim(bottom=0)


def set_density_axis(axes: Any, densities: Sequence[float]) -> None:
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


def add_legend(axes: Any) -> None:
    """A legend below the axes, where it can hide no curve."""
    if axes.lines:
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def say_if_empty(axes: Any) -> None:
    """Words in place of curves where there is none."""
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_REFERENCE)
        axes.set_yticks([])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
