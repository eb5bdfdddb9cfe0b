"""Runs with known results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lth_fast.record import Run, create_run

Summary = dict[str, Any]


def _summary(level: int, **results: Any) -> Summary:
    """A level's summary as an experiment writes it, with ``results`` in place of the default ones."""
    return {
        "level": level,
        "density": 0.8**level,
        "early_stop_iteration": 5000 - 100 * level,
        "early_stop_accuracy": 0.98,
        "test_accuracy": 0.975,
        "iterations": 50_000,
        "seconds": 10.0,
        "train_seconds": 8.0,
        **results,
    }


@pytest.fixture
def summary() -> Callable[..., Summary]:
    return _summary


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """``make_run([s, None], [s])``: one list per replicate, one summary per level, None where a level is training."""

    def make(*replicates: list[Summary | None]) -> Run:
        run = create_run(tmp_path, "lenet", "mnist", "reinit")
        for r, summaries in enumerate(replicates):
            for number, summary in enumerate(summaries):
                level = run.replicate(r).level(number)
                level.log.append(1, [0.5], 0, {})
                if summary is not None:
                    level.save_summary(summary)
        return run

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn, to be looked at."""
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    from matplotlib.figure import Figure

    figures = []

    class Kept(Figure):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    return figures
