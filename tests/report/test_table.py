from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lth_fast.record import Run
from lth_fast.report import table

MakeRun = Callable[..., Run]
MakeSummary = Callable[..., dict[str, Any]]


def test_a_replicate_is_one_plain_line_per_level(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0), summary(1, test_accuracy=0.98125, seconds=123.45)])
    assert table(run).splitlines() == [
        f"{run.path.name}: 2 of 2 levels complete",
        "level  density %  early-stop iteration  accuracy % at early stop  final accuracy %  seconds  iterations/s",
        "    0     100.00                  5000                     98.00             97.50     10.0          6250",
        "    1      80.00                  4900                     98.00             98.12    123.5          6250",
    ]


def test_several_replicates_are_mean_sample_sd_and_n(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run(
        [summary(0, test_accuracy=0.97, early_stop_iteration=4000), summary(1)],
        [summary(0, test_accuracy=0.98, early_stop_iteration=5000), summary(1)],
        [summary(0, test_accuracy=0.99, early_stop_iteration=6000), None],
    )
    caption, header, level0, level1 = table(run).splitlines()
    assert caption == f"{run.path.name}: 5 of 6 levels complete (3 replicates; mean ± sample sd)"
    assert header.split()[:2] == ["level", "n"]
    assert level0.split()[:3] == ["0", "3", "100.00"]
    assert level1.split()[:3] == ["1", "2", "80.00"]
    assert "5000 ± 1000" in level0
    assert "98.00 ± 1.00" in level0


def test_a_second_copy_has_columns_for_barrier_and_distance(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0, error_barrier=0.0512, distance=20.71), summary(1, error_barrier=None, distance=7.0)])
    _, header, level0, level1 = table(run).splitlines()
    assert "final accuracy %  error barrier %  distance  seconds" in header
    assert level0.split()[4:7] == ["97.50", "5.12", "20.7"]
    assert level1.split()[4:7] == ["97.50", "-", "7.0"]


def test_the_columns_are_aligned(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run(
        [summary(level, seconds=10.0**level) for level in range(12)],
        [summary(level, early_stop_iteration=None) for level in range(3)],
    )
    lines = table(run).splitlines()[1:]
    assert len({len(line) for line in lines}) == 1
    ends = [lines[0].index(name) + len(name) for name in ("level", "density %", "seconds", "iterations/s")]
    for line in lines:
        for end in ends:
            assert line[end - 1] != " "
            assert line[end : end + 2] in ("  ", "")


def test_a_missing_value_is_a_dash_and_a_partly_missing_one_says_so(make_run: MakeRun, summary: MakeSummary) -> None:
    unvalidated = summary(0, early_stop_iteration=None, early_stop_accuracy=None)
    assert "100.00                     -                         -" in table(make_run([unvalidated]))
    partly = table(make_run([unvalidated], [summary(0)], [summary(0)]))
    assert "5000 ± 0 (n=2)" in partly
    assert "98.00 ± 0.00 (n=2)" in partly
    assert "97.50 ± 0.00  " in partly


def test_an_interrupted_run_shows_what_there_is(make_run: MakeRun, summary: MakeSummary) -> None:
    lines = table(make_run([summary(0), summary(1), None])).splitlines()
    assert lines[0].endswith(": 2 of 3 levels complete")
    assert [line.split()[0] for line in lines[2:]] == ["0", "1"]


def test_levels_and_replicates_that_are_yet_to_begin_count_as_missing(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0), summary(1), None])
    run.save_manifest({"configuration": {"rounds": 4, "replicates": 3}})
    assert table(run).splitlines()[0].endswith(": 2 of 15 levels complete")
    run.save_manifest({"configuration": {"rounds": 4}})
    assert table(run).splitlines()[0].endswith(": 2 of 5 levels complete")


@pytest.mark.parametrize("name", ["rounds", "replicates"])
@pytest.mark.parametrize("value", [None, "three", [3], 2.5])
def test_a_manifest_that_was_changed_is_refused_in_words(
    make_run: MakeRun, summary: MakeSummary, name: str, value: object
) -> None:
    run = make_run([summary(0)])
    run.save_manifest({"configuration": {name: value}})
    with pytest.raises(ValueError, match=rf"meta\.json: configuration: {name}: expected a whole number, got "):
        table(run)


def test_a_table_reads_summaries_only(make_run: MakeRun, summary: MakeSummary) -> None:
    run = make_run([summary(0)])
    expected = table(run)
    (log,) = run.path.rglob("iterations.csv")
    log.write_text("damaged")
    assert table(run) == expected


def test_a_run_without_a_complete_level_has_no_table(make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="no complete level"):
        table(make_run([None]))
