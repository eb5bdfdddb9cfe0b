"""Several runs side by side, such as a ticket search and its controls: as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_fast.record import Run
from lth_fast.record.atomic import replace_file
from lth_fast.report.drawing import (
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
from lth_fast.report.levels import LevelResults, RunResults, Spread, collect
from lth_fast.report.table import aligned, cell

# Settings that make no difference to what a run finds, or only repeat another setting.
_NO_DIFFERENCE = {
    "save",
    "data",
    "ticket",
    "sources",
    "threads",
    "checkpoint_seconds",
    "gpu",
    "keep",
    "plan",
    "made_by",
}

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# Of second copies.
_QUANTITIES = ("error_barrier", "distance")


def comparison(runs: Sequence[Run]) -> str:
    """Blocks of aligned lines, one line per level: test accuracy and early-stop iteration, a column per run.

    Where one of them is a second copy (``--branch reorder``), also the error barrier and the distance.

    A column is named by the settings in which its run differs from the others. The accuracy is that at early stop where
    every run has it, otherwise that after the last iteration. Cells are as in :func:`~lth_fast.report.table`.

    Args:
        runs: Two or more, each with a complete level.

    Raises:
        ValueError: There are fewer; or one of them has no complete level.
    """
    labels, results = labels_of(runs), [collect(run) for run in runs]
    quantity, title = _accuracy(results)
    blocks = [f"{title} (test)", *_block(labels, results, quantity, 2)]
    if any(level.early_stop_iteration.n for one in results for level in one.levels):
        blocks += ["", "early-stop iteration", *_block(labels, results, "early_stop_iteration", 0)]
    if any(one.is_copy for one in results):
        blocks += ["", "error barrier %", *_block(labels, results, "error_barrier", 2)]
        blocks += ["", "distance", *_block(labels, results, "distance", 1)]
    return "\n".join(blocks)


def comparison_figure(runs: Sequence[Run], file: str | Path | None = None) -> Path:
    """Draw the runs into one figure, replacing ``file`` atomically, and return its path.

    Left: test accuracy. Right: the early-stop iteration. Both against density, one line per run with a band of ± one
    sample standard deviation over its replicates; dashed, the unpruned network of the first run. Of second copies alone
    (``--branch reorder``), left: the error barrier. Right: the distance.

    Args:
        runs: As of :func:`comparison`.
        file: A PNG file; default ``comparison.png`` in the folder that the first run lies in.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: As of :func:`comparison`.
    """
    labels, results = labels_of(runs), [collect(run) for run in runs]
    quantity, title = _accuracy(results)
    copies = all(one.is_copy for one in results)
    drawing, left, right = blank(_title(runs), "")
    for axes, name in zip((left, right), _QUANTITIES if copies else (quantity, "early_stop_iteration"), strict=True):
        for number, (label, one) in enumerate(zip(labels, results, strict=True)):
            style = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
            spreads = [getattr(level, name) for level in one.levels]
            draw(axes, one.levels, spreads, *style, label.replace("$", r"\$"))
        first = results[0].levels[0]
        dense = getattr(first, name).mean if first.level == 0 and not copies else None
        if dense is not None:
            draw_reference(axes, dense, "unpruned")
    if copies:
        name_barrier_axis(left)
        name_distance_axis(right)
    else:
        left.set_title(f"Test {title}")
        left.set_ylabel("test accuracy (%)")
        count_iterations(right)
    densities = [[level.density.mean for level in one.levels if level.density.mean] for one in results]
    for axes in (left, right):
        set_density_axis(axes, min(densities, key=lambda own: min(own, default=math.inf)))
        say_if_empty(axes)
    lines, named = left.get_legend_handles_labels()
    columns = max(1, min(len(named), 130 // (max(map(len, named), default=0) + 8)))
    drawing.legend(lines, named, frameon=False, fontsize=9, ncols=columns, loc="outside lower center")
    path = runs[0].path.parent / "comparison.png" if file is None else Path(file)
    replace_file(path, png(drawing))
    return path


def labels_of(runs: Sequence[Run]) -> list[str]:
    """What sets every run apart from the others, in words: settings, with its folder where those are another's.

    Raises:
        ValueError: There are fewer than two.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: expected two or more, got {len(runs)}")
    settings = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
    labels = [", ".join(_words(name, one.get(name)) for name in differing) for one in settings]
    return [
        label if label and labels.count(label) == 1 else ", ".join(filter(None, (label, run.path.name)))
        for label, run in zip(labels, runs, strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    manifest = run.manifest()
    shown = {name: value for name, value in manifest.get("configuration", {}).items() if name not in _NO_DIFFERENCE}
    branch, retrain = shown.pop("branch", "ticket"), shown.pop("retrain", "weights")
    unusual = [word for word in (f"retrain {retrain}", branch) if word not in ("retrain weights", "ticket")]
    arm = ", ".join(unusual) or "ticket"
    return {"arm": arm, **shown, "net": manifest["net"], "dataset": manifest["dataset"]}


def _words(name: str, value: Any) -> str:
    if name in ("arm", "net", "dataset"):
        return str(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value)) or None
    return f"{name} {'none' if value is None else value}"


def _title(runs: Sequence[Run]) -> str:
    manifests = [run.manifest() for run in runs]
    nets, data_sets = (" and ".join(dict.fromkeys(one[key] for one in manifests)) for key in ("net", "dataset"))
    return f"{nets} on {data_sets}"


def _accuracy(results: Sequence[RunResults]) -> tuple[str, str]:
    """The quantity of a level that all runs have, and what it is called."""
    if all(one.levels[0].early_stop_accuracy.n for one in results):
        return "early_stop_accuracy", "accuracy % at early stop"
    return "final_accuracy", "accuracy % after the last iteration"


def _block(labels: Sequence[str], results: Sequence[RunResults], quantity: str, digits: int) -> list[str]:
    numbers = sorted({level.level for one in results for level in one.levels})
    by_level = [{level.level: level for level in one.levels} for one in results]
    densities = [[_density(levels.get(number)) for levels in by_level] for number in numbers]
    # Where all runs keep as much, one column says it for all.
    shared = all(len({density for density in row if density}) < 2 for row in densities)
    rows = [["level", *(["density %"] if shared else [f"density % {label}" for label in labels]), *labels]]
    for number, row in zip(numbers, densities, strict=True):
        kept = [next(filter(None, row), "-")] if shared else [density or "-" for density in row]
        levels = (one.get(number) for one in by_level)
        rows.append([str(number), *kept, *("-" if one is None else _cell(one, quantity, digits) for one in levels)])
    return aligned(rows)


def _density(level: LevelResults | None) -> str:
    return "" if level is None or level.density.mean is None else f"{level.density.mean:.2f}"


def _cell(level: LevelResults, quantity: str, digits: int) -> str:
    spread: Spread = getattr(level, quantity)
    return cell(spread, digits, level.replicates)
