"""What a person sees while an experiment runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from lth_fast.train import Evaluation, StepperChoice


class Monitor:
    """Told of the progress of a run; this one says nothing."""

    def run_begins(self, path: Path, stepper: StepperChoice) -> None:
        """The run in the folder ``path`` begins or goes on."""

    def replicate_begins(self, number: int, replicates: int, at_once: int = 1) -> None:
        """Replicate ``number``, counted from 0, of several begins or goes on, ``at_once - 1`` more beside it."""

    def level_begins(self, level: int, first: int, iteration: int, last: int, density: float, per_epoch: int) -> None:
        """Level ``level`` trains steps ``first + 1`` to ``last``, and stands at ``iteration``."""

    def stepped(self, iteration: int, losses: Tensor) -> None:
        """Training stands at ``iteration`` now; ``losses`` are those of the steps since the last call."""

    def epoch_ends(self, iteration: int, validation: Evaluation | None) -> None:
        """An epoch is complete, or the level is; ``validation`` is the last evaluation, ``None`` before the first."""

    def line_begins(self, level: int) -> None:
        """Level ``level`` of a second copy is trained; the line from the first one to it is measured."""

    def level_complete(self, summary: dict[str, Any]) -> None:
        """The level's results are stored."""

    def close(self) -> None:
        """The run ends, by itself or not."""


class _Printing(Monitor):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def run_begins(self, path: Path, stepper: StepperChoice) -> None:
        print(f"run:     {path}\nstepper: {stepper}", file=self._stream, flush=True)

    def replicate_begins(self, number: int, replicates: int, at_once: int = 1) -> None:
        beside = f", {at_once - 1} more beside it; what follows is of replicate_{number}" if at_once > 1 else ""
        print(f"replicate_{number} ({number + 1} of {replicates}){beside}", file=self._stream, flush=True)


class LogLines(_Printing):
    """One line per epoch, as the reference project prints it."""

    def level_begins(self, level: int, first: int, iteration: int, last: int, density: float, per_epoch: int) -> None:
        self._level, self._density, self._per_epoch = level, density, per_epoch
        self._loss_sum, self._loss_count = 0.0, 0
        self._began = time.perf_counter()

    def stepped(self, iteration: int, losses: Tensor) -> None:
        self._loss_sum += float(losses.sum())
        self._loss_count += len(losses)

    def epoch_ends(self, iteration: int, validation: Evaluation | None) -> None:
        epoch = -(-iteration // self._per_epoch)
        now = time.perf_counter()
        validated = "" if validation is None else f"validation: {validation.loss:.4g} "
        print(
            f"INFO     [round: {self._level} | epoch: {epoch}] train: {self._loss_sum / self._loss_count:.4g} "
            f"{validated}| sparsity: {100 * (1 - self._density):.4g}% | "
            f"duration: {now - self._began:.1f}s",
            file=self._stream,
            flush=True,
        )
        self._loss_sum, self._loss_count, self._began = 0.0, 0, now

    def line_begins(self, level: int) -> None:
        print(f"INFO     [round: {level} | line between both copies]", file=self._stream, flush=True)


class ProgressBar(_Printing):
    """A bar per level with iterations per second and the time left, and a line for each complete level."""

    def __init__(self, levels: int, stream: TextIO) -> None:
        super().__init__(stream)
        self._levels = levels
        self._bar: Any = None

    def level_begins(self, level: int, first: int, iteration: int, last: int, density: float, per_epoch: int) -> None:
        self.close()
        self._bar = tqdm(
            total=last - first,
            initial=iteration - first,
            desc=f"level {level}/{self._levels - 1} at {100 * density:.3g} %",
            unit=" iterations",
            file=self._stream,
            leave=False,
            dynamic_ncols=True,
        )
        self._first = first

    def stepped(self, iteration: int, losses: Tensor) -> None:
        self._bar.set_postfix_str(f"loss {float(losses[-1]):.3g}", refresh=False)
        self._bar.update(iteration - self._first - self._bar.n)

    def line_begins(self, level: int) -> None:
        self._bar.set_postfix_str("measuring the line between both copies")

    def level_complete(self, summary: dict[str, Any]) -> None:
        self.close()
        early = summary["early_stop_iteration"]
        accuracy = summary["test_accuracy"]
        stopped = f"early stop at {early}, " if early is not None else ""
        tested = f"test accuracy {100 * accuracy:.2f} %, " if accuracy is not None else ""
        tqdm.write(
            f"level {summary['level']:2d}: {100 * summary['density']:6.2f} % kept, {stopped}{tested}"
            f"{summary['seconds']:.1f} s",
            file=self._stream,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def monitor_for(quiet: bool, levels: int) -> Monitor:
    """On stderr: a bar where it is a terminal, log lines elsewhere, nothing with ``quiet``."""
    if quiet:
        return Monitor()
    return ProgressBar(levels, sys.stderr) if sys.stderr.isatty() else LogLines(sys.stderr)
