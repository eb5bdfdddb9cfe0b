from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lth_fast.record import Run, create_run
from lth_fast.report import figure

matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib")

MakeRun = Callable[..., Run]
MakeSummary = Callable[..., dict[str, Any]]


def random_replicate(summary: MakeSummary, levels: int, draw: random.Random) -> list[dict[str, Any]]:
    return [
        summary(
            level,
            early_stop_iteration=draw.randint(1000, 30_000),
            early_stop_accuracy=draw.uniform(0.9, 0.99),
            test_accuracy=draw.uniform(0.9, 0.99),
        )
        for level in range(levels)
    ]


def visible_texts(drawing: Any) -> Iterator[Any]:
    yield from drawing.texts
    for axes in drawing.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_legend().get_texts())
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            yield from (label for place, label in ticks if low <= place <= high)


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path, summary: MakeSummary, drawn: list[Any]) -> None:
    run = create_run(tmp_path, "a$b", r"c\frac{$")
    run.replicate(0).level(0).save_summary(summary(0))
    assert figure(run).exists()
    assert any(text.get_text().startswith(r"a$b on c\frac{$") for text in visible_texts(drawn[0]))


def test_a_figure_is_a_png_in_the_folder_of_the_run(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0), summary(1)])
    file = figure(run)
    assert file == run.path / "report.png"
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[begin : begin + 4], "big") for begin in (16, 20))
    assert width > height > 500
    assert sorted(path.name for path in run.path.iterdir()) == ["meta.json", "replicate_0", "report.png"]


def test_the_same_results_give_the_same_picture(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0), summary(1)])
    assert figure(run).read_bytes() == figure(run).read_bytes()


def test_the_lines_are_the_means_and_the_bands_one_sd_wide(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(
        make_run(
            [summary(0), summary(1, early_stop_accuracy=0.96, test_accuracy=0.95, early_stop_iteration=3000)],
            [summary(0), summary(1, early_stop_accuracy=0.98, test_accuracy=0.97, early_stop_iteration=5000)],
        )
    )
    accuracy, iteration = drawn[0].axes
    early_stop, final, dense = accuracy.lines
    assert early_stop.get_xdata() == pytest.approx([100, 80])
    assert early_stop.get_ydata() == pytest.approx([98, 97])
    assert final.get_ydata() == pytest.approx([97.5, 96])
    assert dense.get_ydata() == pytest.approx([97.5, 97.5])
    assert iteration.lines[0].get_ydata() == pytest.approx([5000, 4000])
    assert list(iteration.lines[1].get_ydata()) == [5000, 5000]
    band = accuracy.collections[0].get_datalim(accuracy.transData)
    assert (band.y0, band.y1) == pytest.approx((97 - 2**0.5, 97 + 2**0.5))


def test_of_a_second_copy_barrier_and_distance_are_drawn(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0, error_barrier=0.3, distance=20.0), summary(1, error_barrier=0.01, distance=7.0)]))
    barrier, distance = drawn[0].axes
    assert [list(line.get_ydata()) for line in barrier.lines] == [[30, 1], [2, 2]]
    assert [list(line.get_ydata()) for line in distance.lines] == [[20, 7]]
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["error barrier (% of the test set)", "Euclidean distance"]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_curve_and_axis_says_what_it_is(make_run: MakeRun, summary: MakeSummary, drawn: list[Any]) -> None:
    run = make_run([summary(0), summary(1)])
    figure(run)
    accuracy, iteration = drawn[0].axes
    assert labels(accuracy) == ["at early stop", "after the last iteration", "unpruned (97.50 %)"]
    assert labels(iteration) == ["early stop", "unpruned (5,000)"]
    assert [axes.get_title() for axes in drawn[0].axes] == ["Test accuracy", "Iteration of minimum validation loss"]
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["test accuracy (%)", "early-stop iteration"]
    assert {axes.get_xlabel() for axes in drawn[0].axes} == {"density (% of weights kept)"}
    assert drawn[0].get_supxlabel() == run.path.name
    assert "2,000" in [label.get_text() for label in iteration.get_yticklabels()]
    assert iteration.get_ylim()[0] == 0
    curves = [(line.get_color(), line.get_marker()) for line in accuracy.lines[:2]]
    assert len({color for color, _ in curves}) == len({marker for _, marker in curves}) == 2
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "-", "--"]
    for axes in drawn[0].axes:  # below, where it can hide no curve
        assert axes.get_legend().get_window_extent().y1 < axes.bbox.y0


def test_every_curve_and_axis_of_a_second_copy_says_what_it_is(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0, error_barrier=0.3, distance=20.0), summary(1, error_barrier=0.2, distance=7.0)]))
    barrier, distance = drawn[0].axes
    assert labels(barrier) == ["error barrier", "stable below 2 %"]
    assert labels(distance) == ["distance"]
    assert [axes.get_title() for axes in drawn[0].axes] == [
        "Error barrier between two orders of the data",
        "Distance between two orders of the data",
    ]
    assert [axes.get_ylim()[0] for axes in drawn[0].axes] == [0, 0]


def test_a_level_without_a_value_is_a_gap_and_one_of_zero_is_none(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    accuracies = [0.0, None, 0.9]
    figure(make_run([summary(level, early_stop_accuracy=value) for level, value in enumerate(accuracies)]))
    heights = drawn[0].axes[0].lines[0].get_ydata()
    assert (heights[0], math.isnan(heights[1]), heights[2]) == (0, True, pytest.approx(90))


def test_an_unpruned_network_that_learnt_nothing_is_shown_too(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0, test_accuracy=0.0, early_stop_iteration=0), summary(1)]))
    assert [list(axes.lines[-1].get_ydata()) for axes in drawn[0].axes] == [[0, 0], [0, 0]]


def test_only_what_begins_with_an_unpruned_network_is_compared_with_one(
    tmp_path: Path, summary: MakeSummary, drawn: list[Any]
) -> None:
    run = create_run(tmp_path, "lenet", "mnist")
    run.replicate(0).level(1).save_summary(summary(1))
    figure(run)
    assert [len(axes.lines) for axes in drawn[0].axes] == [2, 1]


def test_a_level_of_which_nothing_is_left_has_no_place_on_a_logarithmic_axis(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0), summary(1, density=0.0)]))
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["100"]


def test_without_data_a_second_copy_has_distances_alone(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0, distance=20.0)]))
    barrier, distance = drawn[0].axes
    assert [text.get_text() for text in barrier.texts] == ["not measured"]
    assert [list(line.get_ydata()) for line in distance.lines] == [[20]]


def test_the_band_of_a_single_replicate_has_no_width(make_run: MakeRun, summary: MakeSummary, drawn: list[Any]) -> None:
    figure(make_run([summary(0), summary(1)]))
    accuracy, _ = drawn[0].axes
    band = accuracy.collections[0].get_datalim(accuracy.transData)
    line = accuracy.lines[0].get_ydata()
    assert (band.y0, band.y1) == pytest.approx((min(line), max(line)))


def test_density_falls_to_the_right_on_a_logarithmic_axis(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(level) for level in range(6)]))
    for axes in drawn[0].axes:
        left, right = axes.get_xlim()
        assert axes.get_xscale() == "log"
        assert left > 100 > 100 * 0.8**5 > right > 0
        assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "80", "64", "51.2", "41", "32.8"]


def test_the_title_names_network_data_set_and_replicates(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    figure(make_run([summary(0)]))
    figure(make_run([summary(0)], [summary(0)]))
    figure(make_run([summary(0), summary(1)], [summary(0), None]))
    titles = [drawing.get_suptitle().split("   ") for drawing in drawn]
    assert titles == [
        ["lenet on mnist", "(n = 1)"],
        ["lenet on mnist", "(n = 2; mean ± sd)"],
        ["lenet on mnist", "(n = 1 to 2; mean ± sd)"],
    ]


@pytest.mark.parametrize(("levels", "replicates"), [(1, 1), (2, 2), (9, 1), (26, 3), (60, 1)])
def test_no_text_covers_another_or_leaves_the_picture(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any], levels: int, replicates: int
) -> None:
    draw = random.Random(1000 * levels + replicates)
    figure(make_run(*(random_replicate(summary, levels, draw) for _ in range(replicates))))
    drawing = drawn[0]
    texts = list(visible_texts(drawing))
    assert {"lenet on mnist", "Test accuracy", "early-stop iteration", "100", "at early stop"} <= {
        text.get_text().split("   ")[0] for text in texts
    }
    boxes = [(text.get_text(), text.get_window_extent(drawing.canvas.get_renderer())) for text in texts]
    for text, box in boxes:
        assert drawing.bbox.x0 <= box.x0 and box.x1 <= drawing.bbox.x1, text
        assert drawing.bbox.y0 <= box.y0 and box.y1 <= drawing.bbox.y1, text
    for (text, box), (other, its_box) in combinations(boxes, 2):
        assert not box.overlaps(its_box), (text, other)


def test_a_run_that_was_not_validated_shows_what_was_measured(
    make_run: MakeRun, summary: MakeSummary, drawn: list[Any]
) -> None:
    missing = {"early_stop_iteration": None, "early_stop_accuracy": None}
    figure(make_run([summary(0, **missing), summary(1, **missing)]))
    accuracy, iteration = drawn[0].axes
    assert len(accuracy.lines) == 2
    assert not iteration.lines
    assert [text.get_text() for text in iteration.texts] == ["not measured"]


def test_a_figure_leaves_the_settings_of_matplotlib_alone(
    make_run: MakeRun, summary: MakeSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run([summary(0)])
    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now is an error
    figure(run)
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_error_says_what_to_install(
    make_run: MakeRun, summary: MakeSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run([summary(0)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing a figure needs matplotlib.*pip install 'lth_fast\[plot\]'"):
        figure(run)


def test_a_run_without_a_complete_level_has_no_figure(make_run: MakeRun) -> None:
    run = make_run([None])
    with pytest.raises(ValueError, match="no complete level"):
        figure(run)
    assert not (run.path / "report.png").exists()
