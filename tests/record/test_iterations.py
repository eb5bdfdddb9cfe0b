from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth_fast.record import COLUMNS, IterationLog

HEADER = "iteration,train_loss,sparsity,valid_loss,valid_acc,test_loss,test_acc\n"
Evaluation = tuple[float, float, float, float]
DiskWithRoomFor = Callable[[int], AbstractContextManager[None]]


def random_losses(count: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).lognormal(0, 3, count).astype(np.float32)


def random_evaluations(iterations: range, seed: int) -> dict[int, Evaluation]:
    draw = random.Random(seed)
    return {i: (draw.random(), draw.random(), draw.random(), draw.random()) for i in iterations}


@pytest.fixture
def log(tmp_path: Path) -> IterationLog:
    return IterationLog(tmp_path / "iterations.csv")


def test_each_iteration_is_a_row_with_nan_between_evaluations(log: IterationLog) -> None:
    log.append(1, [0.5, math.nan, 0.1], 48.8, {3: (0.25, 0.9375, math.nan, math.nan)})
    assert log.path.read_text() == HEADER + (
        "1,0.5,48.8,nan,nan,nan,nan\n2,nan,48.8,nan,nan,nan,nan\n3,0.100000001,48.8,0.25,0.9375,nan,nan\n"
    )


def test_many_rows_are_formatted_as_one_by_one(log: IterationLog) -> None:
    losses = random_losses(50_000, seed=1)
    evaluations = random_evaluations(range(100, 50_001, 100), seed=2)
    log.append(1, losses, 96.5, evaluations)
    expected = [HEADER]
    for iteration, loss in enumerate(losses, start=1):
        measured = evaluations.get(iteration, (math.nan,) * 4)
        fields = [f"{iteration}", f"{loss:.9g}", "96.5", *(f"{value:.9g}" for value in measured)]
        expected.append(",".join(fields) + "\n")
    assert log.path.read_text() == "".join(expected)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.integers(0, 10**9))
def test_every_float32_loss_comes_back_exactly(losses: list[float], first: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = IterationLog(Path(folder) / "iterations.csv")
        log.append(first, losses, 0, {})
        columns = log.read()
    np.testing.assert_array_equal(columns["train_loss"].astype(np.float32), np.array(losses, dtype=np.float32))
    np.testing.assert_array_equal(columns["iteration"], first + np.arange(len(losses)))


def test_columns_come_back_by_name(log: IterationLog) -> None:
    evaluations = random_evaluations(range(10, 31, 10), seed=3)
    log.append(1, random_losses(30, seed=4), 20, evaluations)
    columns = log.read()
    assert tuple(columns) == COLUMNS
    assert columns["iteration"].dtype == np.int64
    assert all(columns[name].dtype == np.float64 and columns[name].shape == (30,) for name in COLUMNS[1:])
    np.testing.assert_array_equal(columns["sparsity"], 20)
    for place, name in enumerate(("valid_loss", "valid_acc", "test_loss", "test_acc")):
        expected = [evaluations[i][place] if i in evaluations else math.nan for i in range(1, 31)]
        np.testing.assert_allclose(columns[name], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_tensor_of_losses_is_written_like_its_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    losses = torch.tensor(random_losses(20, seed=5)).to(dtype).requires_grad_()
    IterationLog(tmp_path / "tensor.csv").append(1, losses, 0, {})
    IterationLog(tmp_path / "numbers.csv").append(1, losses.tolist(), 0, {})
    assert (tmp_path / "tensor.csv").read_bytes() == (tmp_path / "numbers.csv").read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_the_size_of_the_pieces_does_not_show(tmp_path: Path, seed: int) -> None:
    losses = random_losses(500, seed)
    evaluations = random_evaluations(range(50, 501, 50), seed)
    at_once, in_pieces = IterationLog(tmp_path / "once.csv"), IterationLog(tmp_path / "pieces.csv")
    at_once.append(1, losses, 36, evaluations)
    cuts = sorted({0, 500, *np.random.default_rng(seed).integers(1, 500, 7).tolist()})
    for begin, end in pairwise(cuts):
        here = {i: measured for i, measured in evaluations.items() if begin < i <= end}
        in_pieces.append(begin + 1, losses[begin:end], 36, here)
    assert in_pieces.path.read_bytes() == at_once.path.read_bytes()


@pytest.mark.parametrize("torn", [b"", b"201,0.5,3", b"201,0.5,36,nan,nan,nan,nan\n"])
@pytest.mark.parametrize("seed", range(3))
def test_resuming_at_the_size_of_the_checkpoint_gives_the_bytes_of_an_uninterrupted_log(
    tmp_path: Path, torn: bytes, seed: int
) -> None:
    losses = random_losses(300, seed)
    evaluations = random_evaluations(range(100, 301, 100), seed)
    uninterrupted, resumed = IterationLog(tmp_path / "a.csv"), IterationLog(tmp_path / "b.csv")
    uninterrupted.append(1, losses, 36, evaluations)
    size = resumed.append(1, losses[:100], 36, {100: evaluations[100]})
    resumed.append(101, losses[100:200], 36, {200: evaluations[200]})
    with resumed.path.open("ab") as file:
        file.write(torn)
    resumed.truncate(size)
    assert resumed.size == size
    resumed.append(101, losses[100:], 36, {200: evaluations[200], 300: evaluations[300]})
    assert resumed.path.read_bytes() == uninterrupted.path.read_bytes()


def test_resuming_before_the_first_checkpoint_starts_anew(log: IterationLog) -> None:
    log.truncate(0)
    assert not log.path.exists()
    log.append(1, [0.5], 0, {})
    whole = log.path.read_bytes()
    log.truncate(0)
    assert log.size == 0
    log.append(1, [0.5], 0, {})
    assert log.path.read_bytes() == whole


def test_append_returns_the_size_of_the_file(log: IterationLog) -> None:
    assert log.size == 0
    assert log.append(1, [0.5, 0.25], 0, {}) == log.size == log.path.stat().st_size
    assert log.append(3, [0.5], 0, {}) == log.size == log.path.stat().st_size


def test_a_log_that_lost_rows_cannot_be_resumed(log: IterationLog) -> None:
    size = log.append(1, [0.5], 0, {})
    with pytest.raises(ValueError, match=rf"iterations\.csv has {size} bytes, expected at least size={size + 1}"):
        log.truncate(size + 1)
    with pytest.raises(ValueError, match="size >= 0"):
        log.truncate(-1)
    assert log.size == size


def test_a_full_disk_leaves_the_log_as_it_was(log: IterationLog, disk_with_room_for: DiskWithRoomFor) -> None:
    size = log.append(1, random_losses(100, seed=6), 0, {})
    before = log.path.read_bytes()
    with disk_with_room_for(size + 1000), pytest.raises(OSError, match="too large"):
        log.append(101, random_losses(1000, seed=7), 0, {})
    assert log.path.read_bytes() == before


def test_a_log_without_rows_has_empty_columns(log: IterationLog) -> None:
    log.append(1, [], 0, {})
    assert log.path.read_text() == HEADER
    assert {name: column.shape for name, column in log.read().items()} == dict.fromkeys(COLUMNS, (0,))


@pytest.mark.parametrize(
    ("losses", "sparsity", "evaluations", "message"),
    [
        ([[0.5]], 0, {}, r"train_losses should have the shape \[n\], got \[1, 1\]"),
        ([0.5], 101, {}, r"sparsity should be a percentage in 0\.\.100, got 101"),
        ([0.5], math.nan, {}, "sparsity should be a percentage"),
        ([0.5, 0.5], 0, {10: (0.0,) * 4}, r"evaluations should lie within iterations 11\.\.12, got 10"),
        ([0.5, 0.5], 0, {13: (0.0,) * 4}, r"evaluations should lie within iterations 11\.\.12, got 13"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    log: IterationLog, losses: list[float], sparsity: float, evaluations: dict[int, Evaluation], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        log.append(11, losses, sparsity, evaluations)
    assert not log.path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "should begin with"),
        (HEADER[:20], "should begin with"),
        ("a,b\n1,2\n", "should begin with"),
        (HEADER + "1,0.5,0,nan,nan,nan,nan\n2,0.", "ends in the middle of a row"),
        (HEADER + "1,0.5,0,nan,nan,nan\n", "6 columns"),
        (HEADER + "1,0.5,0,nan,nan,nan,nan\n2,0.5\n", "damaged"),
        (HEADER + "1,0.5,zero,nan,nan,nan,nan\n", "damaged"),
        (HEADER + "1,0.5,0,nan,nan,nan,nan\n1,0.5,0,nan,nan,nan,nan\n", "not consecutive"),
        (HEADER + "nan,0.5,0,nan,nan,nan,nan\n", "not consecutive"),
    ],
)
def test_a_damaged_log_is_named(log: IterationLog, content: str, message: str) -> None:
    log.path.write_text(content)
    with pytest.raises(ValueError, match=rf"iterations\.csv.*{message}"):
        log.read()


def test_a_missing_log_is_not_found(log: IterationLog) -> None:
    with pytest.raises(FileNotFoundError, match=r"iterations\.csv"):
        log.read()
