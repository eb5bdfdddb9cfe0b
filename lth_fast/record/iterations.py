"""The log of a level: a CSV file with one row per iteration that grows while the level trains."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lth_fast.record.atomic import make_folder, sync_folder, write_all

COLUMNS = ("iteration", "train_loss", "sparsity", "valid_loss", "valid_acc", "test_loss", "test_acc")
"""Losses are means per example; accuracies lie in 0..1; sparsity is in percent; NaN where nothing was evaluated."""

_HEADER = (",".join(COLUMNS) + "\n").encode()
_NOT_EVALUATED = ",nan,nan,nan,nan\n"


class IterationLog:
    """The file ``path`` of a level's iterations. The same rows give the same bytes, however they were appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes in the file; 0 where there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(
        self,
        first_iteration: int,
        train_losses: Sequence[float] | npt.NDArray[np.float32] | Tensor,
        sparsity: float,
        evaluations: Mapping[int, tuple[float, float, float, float]],
    ) -> int:
        """Add one row for each of ``first_iteration``, ``first_iteration + 1``, ... and bring it to the disk.

        Args:
            first_iteration: Iteration of the first loss.
            train_losses: float32 [n], on any device.
            sparsity: Share of pruned weights in percent, 0..100.
            evaluations: (valid_loss, valid_acc, test_loss, test_acc) after the iteration that is the key; NaN where
                a set was not evaluated. Every key is one of the n iterations.

        Returns:
            The size of the file in bytes, to be kept in the checkpoint and given to :meth:`truncate` on resume.

        Raises:
            ValueError: An argument is out of range. Nothing was written.
            OSError: The rows cannot be written. The file is as it was.
        """
        rows = _rows(first_iteration, train_losses, sparsity, evaluations)
        make_folder(self.path.parent)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, rows if before else _HEADER + rows)
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
            after = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if not before:
            sync_folder(self.path.parent)
        return after

    def truncate(self, size: int) -> None:
        """Drop everything behind the first ``size`` bytes: the rows of iterations that a resumed level trains again.

        Raises:
            ValueError: The file is shorter than ``size``, so rows that a checkpoint counts on are lost.
        """
        if not 0 <= size <= self.size:
            raise ValueError(f"{self.path} has {self.size} bytes, expected at least size={size} (and size >= 0)")
        if size < self.size:
            with self.path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """Read the log: one array [rows] per name in :data:`COLUMNS`, ``iteration`` int64, the others float64.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or ends in the middle of a row. The message names it.
        """
        data = self.path.read_bytes()
        if not data.startswith(_HEADER):
            raise ValueError(f"{self.path} should begin with the line {','.join(COLUMNS)}")
        if not data.endswith(b"\n"):
            raise ValueError(
                f"{self.path} ends in the middle of a row: it is being written, or its writer was killed; "
                "resuming the run repairs it"
            )
        table = np.empty((0, len(COLUMNS)))
        if len(data) > len(_HEADER):  # numpy warns about a table without rows
            try:
                table = np.loadtxt(io.BytesIO(data[len(_HEADER) :]), delimiter=",", comments=None, ndmin=2)
            except ValueError as error:
                raise ValueError(f"{self.path} is damaged: {error}") from error
        if table.shape[1] != len(COLUMNS):
            raise ValueError(f"{self.path} is damaged: {table.shape[1]} columns, expected {len(COLUMNS)}")
        iterations = table[:, 0]
        if len(iterations) and not np.array_equal(iterations, iterations[0] + np.arange(len(iterations))):
            raise ValueError(f"{self.path} is damaged: its iterations are not consecutive")
        return {"iteration": iterations.astype(np.int64)} | {
            name: table[:, column].copy() for column, name in enumerate(COLUMNS) if column
        }


def _rows(
    first_iteration: int,
    train_losses: Sequence[float] | npt.NDArray[np.float32] | Tensor,
    sparsity: float,
    evaluations: Mapping[int, tuple[float, float, float, float]],
) -> bytes:
    if isinstance(train_losses, Tensor):
        train_losses = train_losses.detach().float().cpu().numpy()
    losses = np.asarray(train_losses, dtype=np.float32)
    if losses.ndim != 1:
        raise ValueError(f"train_losses should have the shape [n], got {list(losses.shape)}")
    if not 0 <= sparsity <= 100:
        raise ValueError(f"sparsity should be a percentage in 0..100, got {sparsity}")
    iterations = range(first_iteration, first_iteration + len(losses))
    percentage = f",{sparsity:.9g}"
    endings = [percentage + _NOT_EVALUATED] * len(losses)
    for iteration, measured in evaluations.items():
        if iteration not in iterations:
            raise ValueError(
                f"evaluations should lie within iterations {first_iteration}..{first_iteration + len(losses) - 1}, "
                f"got {iteration}"
            )
        valid_loss, valid_acc, test_loss, test_acc = measured
        endings[iteration - first_iteration] = (
            f"{percentage},{valid_loss:.9g},{valid_acc:.9g},{test_loss:.9g},{test_acc:.9g}\n"
        )
    # One format string for all rows: a call per row costs more than its digits. Nine digits hold every float32.
    rows = zip(iterations, losses.tolist(), endings, strict=True)
    return (("%d,%.9g%s" * len(losses)) % tuple(chain.from_iterable(rows))).encode()
