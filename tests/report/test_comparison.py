"""Several runs side by side: what the columns are called, what stands in them, what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lth_fast.record import Run
from lth_fast.report import comparison, comparison_figure
from lth_fast.report.comparison import labels_of

MakeSummary = Callable[..., dict[str, Any]]


@pytest.fixture
def make_arm(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """``make_arm([s, s], [s, s], branch="reinit")``: a run whose manifest has these settings."""

    def make(*replicates: list[Any], net: str = "lenet", **settings: Any) -> Run:
        run = make_run(*replicates)
        run.save_manifest({"net": net, "dataset": "mnist", "configuration": settings})
        return run

    return make


def cells(lines: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines.splitlines()]


def test_a_line_per_level_has_the_quantity_of_every_run(make_arm: Any, summary: MakeSummary) -> None:
    ticket = make_arm(
        [summary(0), summary(1, early_stop_accuracy=0.96, early_stop_iteration=3000)],
        [summary(0), summary(1, early_stop_accuracy=0.98, early_stop_iteration=5000)],
        branch="ticket",
    )
    control = make_arm([summary(0), summary(1, early_stop_accuracy=0.5, early_stop_iteration=7)], branch="reinit")
    assert cells(comparison([ticket, control])) == [
        ["accuracy % at early stop (test)"],
        ["level", "density %", "ticket", "reinit"],
        ["0", "100.00", "98.00 ± 0.00", "98.00"],
        ["1", "80.00", "97.00 ± 1.41", "50.00"],
        [],
        ["early-stop iteration"],
        ["level", "density %", "ticket", "reinit"],
        ["0", "100.00", "5000 ± 0", "5000"],
        ["1", "80.00", "4000 ± 1414", "7"],
    ]


def test_beside_a_second_copy_there_are_blocks_of_barriers_and_distances(make_arm: Any, summary: MakeSummary) -> None:
    ticket = make_arm([summary(0), summary(1)], branch="ticket")
    copy = make_arm([summary(level, error_barrier=level / 100, distance=9.0) for level in range(2)], branch="reorder")
    assert cells(comparison([ticket, copy]))[-9:] == [
        ["error barrier %"],
        ["level", "density %", "ticket", "reorder"],
        ["0", "100.00", "-", "0.00"],
        ["1", "80.00", "-", "1.00"],
        [],
        ["distance"],
        ["level", "density %", "ticket", "reorder"],
        ["0", "100.00", "-", "9.0"],
        ["1", "80.00", "-", "9.0"],
    ]


def test_columns_are_aligned(make_arm: Any, summary: MakeSummary) -> None:
    runs = [make_arm([summary(0), summary(1)], branch=branch) for branch in ("ticket", "random_mask")]
    accuracy, iteration = comparison(runs).split("\n\n")
    for block in (accuracy, iteration):
        _, *lines = block.splitlines()
        assert len({len(line) for line in lines}) == 1


def test_runs_that_prune_at_other_rates_or_reach_other_levels_have_densities_of_their_own(
    make_arm: Any, summary: MakeSummary
) -> None:
    slow = make_arm([summary(0, density=1.0), summary(1, density=0.9), summary(2, density=0.81)], prune_rate=0.1)
    fast = make_arm([summary(0, density=1.0), summary(1, density=0.5)], prune_rate=0.5)
    rows = cells(comparison([slow, fast]))
    assert rows[1] == [
        "level",
        "density % prune_rate 0.1",
        "density % prune_rate 0.5",
        "prune_rate 0.1",
        "prune_rate 0.5",
    ]
    assert [row[:3] for row in rows[2:5]] == [["0", "100.00", "100.00"], ["1", "90.00", "50.00"], ["2", "81.00", "-"]]
    assert rows[4][4] == "-"


def test_where_a_run_was_not_validated_the_final_accuracy_is_compared(make_arm: Any, summary: MakeSummary) -> None:
    missing = {"early_stop_iteration": None, "early_stop_accuracy": None}
    with_it = make_arm([summary(0, test_accuracy=0.75)], branch="ticket", validation=5000)
    without = make_arm([summary(0, test_accuracy=0.5, **missing)], branch="ticket", validation=0)
    text = comparison([with_it, without])
    assert cells(text)[:3] == [
        ["accuracy % after the last iteration (test)"],
        ["level", "density %", "validation 5000", "validation 0"],
        ["0", "100.00", "75.00", "50.00"],
    ]
    assert cells(text)[-1] == ["0", "100.00", "5000", "-"]
    assert "early-stop iteration" not in comparison([without, without])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{"branch": "ticket"}, {"branch": "reinit"}, {"branch": "random_mask"}], ["ticket", "reinit", "random_mask"]),
        ([{}, {"branch": "ticket", "retrain": "learn_rate"}], ["ticket", "retrain learn_rate"]),
        (
            [{"retrain": "finetune"}, {"branch": "reorder", "retrain": "finetune"}, {"branch": "reorder"}],
            ["retrain finetune", "retrain finetune, reorder", "reorder"],
        ),
        ([{"seed": 1, "prune_rate": 0.2}, {"seed": 2, "prune_rate": 0.2}], ["seed 1", "seed 2"]),
        ([{"prune_bias": True, "whole": []}, {"prune_bias": False, "whole": ["output", "shortcuts"]}], None),
        ([{"branch": "ticket", "fc_rate": None}, {"branch": "reinit", "fc_rate": 0.1}], None),
        ([{"net": "lenet"}, {"net": "conv2"}], ["lenet", "conv2"]),
    ],
)
def test_a_run_is_called_by_the_settings_that_set_it_apart(
    settings: list[dict[str, Any]], labels: list[str] | None, make_arm: Any, summary: MakeSummary
) -> None:
    others = {  # what a run finds does not depend on these, or repeats what others say
        "save": "./runs",
        "threads": 2,
        "plan": "masked",
        "ticket": "./runs/ticket",
        "sources": {"seed": "given"},
    }
    first, *rest = settings
    runs = [make_arm([summary(0)], **first), *(make_arm([summary(0)], **own, **others) for own in rest)]
    expected = (
        labels
        or {
            "prune_bias": ["prune_bias, whole none", "no prune_bias, whole output,shortcuts"],
            "branch": ["ticket, fc_rate none", "reinit, fc_rate 0.1"],
        }[next(iter(first))]
    )
    assert labels_of(runs) == expected


def test_runs_of_the_same_settings_are_called_by_their_folders(make_arm: Any, summary: MakeSummary) -> None:
    same = [make_arm([summary(0)], seed=1), make_arm([summary(0)], seed=1)]
    assert labels_of(same) == [run.path.name for run in same]
    other = make_arm([summary(0)], seed=2)
    assert labels_of([*same, other]) == [*(f"seed 1, {run.path.name}" for run in same), "seed 2"]


@pytest.mark.parametrize("compare", [comparison, comparison_figure])
def test_a_single_run_cannot_be_compared_nor_one_without_a_complete_level(
    compare: Callable[..., Any], make_arm: Any, summary: MakeSummary
) -> None:
    run, begun = make_arm([summary(0)]), make_arm([None])
    with pytest.raises(ValueError, match=r"^runs: expected two or more, got 1$"):
        compare([run])
    with pytest.raises(ValueError, match=rf"^{begun.path} has no complete level yet"):
        compare([run, begun])
    assert not (run.path.parent / "comparison.png").exists()


def test_the_figure_has_a_line_per_run_and_the_unpruned_network_of_the_first(
    make_arm: Any, summary: MakeSummary, drawn: list[Any], tmp_path: Path
) -> None:
    ticket = make_arm([summary(0), summary(1, early_stop_accuracy=0.99)], branch="ticket")
    control = make_arm([summary(0, early_stop_accuracy=0.5), summary(1, early_stop_iteration=9)], branch="reinit")
    file = comparison_figure([ticket, control])
    assert file == ticket.path.parent / "comparison.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    accuracy, iteration = drawn[0].axes
    assert [line.get_ydata() for line in accuracy.lines] == [
        pytest.approx(values) for values in ([98, 99], [50, 98], [98, 98])
    ]
    assert [line.get_ydata()[1] for line in iteration.lines] == [4900, 9, 5000]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["ticket", "reinit", "unpruned"]
    assert drawn[0].get_suptitle() == "lenet on mnist"
    assert comparison_figure([ticket, control], tmp_path / "mine.png").read_bytes() == file.read_bytes()


def test_the_figure_of_second_copies_alone_has_barriers_and_distances(
    make_arm: Any, summary: MakeSummary, drawn: list[Any]
) -> None:
    copies = [
        make_arm([summary(level, error_barrier=height, distance=3 + level) for level in range(2)], branch=branch)
        for branch, height in (("reorder", 0.01), ("reorder:random_mask", 0.4))
    ]
    comparison_figure(copies)
    barrier, distance = drawn[0].axes
    assert [list(line.get_ydata()) for line in barrier.lines] == [[1, 1], [40, 40], [2, 2]]
    assert [list(line.get_ydata()) for line in distance.lines] == [[3, 4], [3, 4]]
    (legend,) = drawn[0].legends
    labels = ["reorder", "reorder:random_mask", "stable below 2 %"]
    assert [text.get_text() for text in legend.get_texts()] == labels
    comparison_figure([copies[0], make_arm([summary(0)], branch="ticket")])
    assert drawn[1].axes[0].get_ylabel() == "test accuracy (%)"


def test_the_density_axis_shows_the_sparsest_run(make_arm: Any, summary: MakeSummary, drawn: list[Any]) -> None:
    dense = make_arm([summary(level, density=0.9**level) for level in range(5)], prune_rate=0.1)
    sparse = make_arm([summary(level, density=0.1**level) for level in range(3)], prune_rate=0.9)
    comparison_figure([dense, sparse])
    for axes in drawn[0].axes:
        left, right = axes.get_xlim()
        assert left > 100 > 1 > right > 0


@pytest.mark.parametrize("arms", [2, 5, 9])
def test_names_of_runs_cover_nothing_and_lie_inside_the_picture(
    arms: int, make_arm: Any, summary: MakeSummary, drawn: list[Any]
) -> None:
    runs = [make_arm([summary(0), summary(1)], net=rf"a$b\frac{{{n}", seed=n, milestones=[1, n]) for n in range(arms)]
    comparison_figure(runs)
    (legend,) = drawn[0].legends
    renderer = drawn[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in legend.get_texts()]
    assert len(boxes) == arms + 1
    boxes += [axes.xaxis.label.get_window_extent(renderer) for axes in drawn[0].axes]
    for box in boxes:
        assert drawn[0].bbox.x0 <= box.x0 and box.x1 <= drawn[0].bbox.x1
        assert drawn[0].bbox.y0 <= box.y0 and box.y1 <= drawn[0].bbox.y1
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
