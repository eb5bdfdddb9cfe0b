"""A finished or running run in a notebook: plain rows, numpy columns and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from lth_fast.record.run import Level, Run, WeightKind, open_run


@dataclass(frozen=True)
class LoadedRun:
    """What a run recorded. Made by :func:`load_run`.

    Attributes:
        run: The run itself.
        manifest: What was asked for and how it was run.
        levels: One row per complete level, by replicate and level: ``replicate``, ``level`` and every field of the
            level's ``summary.json``, among them ``density``, ``layers`` (the density of each by parameter name),
            ``early_stop_iteration``, ``early_stop_accuracy`` (on the test set) and ``test_accuracy`` (after the last
            iteration), all shares 0 to 1. ``pandas.DataFrame(loaded.levels)`` makes a table of it.
    """

    run: Run
    manifest: dict[str, Any]
    levels: list[dict[str, Any]]

    def iterations(self, level: int, replicate: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Columns of the level's log, each [iterations]; see :data:`lth_fast.record.COLUMNS` for names and units.

        Raises:
            FileNotFoundError: The level has no log.
        """
        return self._level(level, replicate).log.read()

    def masks(self, level: int, replicate: int = 0) -> dict[str, Tensor]:
        """The level's masks: bool CPU tensors by parameter name, True where a weight survives.

        :func:`lth_fast.nn.set_masks` puts them on a model; those of level 0 keep everything.

        Raises:
            FileNotFoundError: The level has none.
        """
        return _found(self._level(level, replicate).masks(), "masks", level, replicate, self.run)

    def weights(self, level: int, kind: WeightKind = "end", replicate: int = 0) -> dict[str, Tensor]:
        """The level's weights: a state dict of CPU tensors, which :func:`lth_fast.nn.load_dense_state` loads.

        Args:
            level: 0 is the unpruned network.
            kind: ``rewind``: those the level starts from (of level 0: those at the rewind point, which the others start
                from); ``early_stop``: at the iteration of minimum validation loss; ``end``: after the last iteration.
            replicate: Number of the repetition.

        Raises:
            FileNotFoundError: The level has none of this kind.
        """
        return _found(self._level(level, replicate).weights(kind), f"{kind} weights", level, replicate, self.run)

    def kept(self, iteration: int, replicate: int = 0) -> dict[str, Tensor]:
        """The dense network's state dict after ``iteration`` updates, as ``--keep`` stored it.

        Raises:
            FileNotFoundError: It was not kept.
        """
        what = f"weights kept at iteration {iteration}"
        return _found(self._level(0, replicate).kept(iteration), what, 0, replicate, self.run)

    def _level(self, level: int, replicate: int) -> Level:
        return self.run.replicate(replicate).level(level)


def load_run(path: str | Path) -> LoadedRun:
    """Load the run whose folder is ``path``: manifest and summaries now, everything else when asked for.

    Raises:
        FileNotFoundError: There is no run at ``path``.
        ValueError: A file is damaged, or a newer lth_fast wrote the run.
    """
    run = open_run(path)
    rows = [
        {"replicate": replicate.number, "level": level.number, **summary}
        for replicate in run.replicates()
        for level in replicate.levels()
        if (summary := level.summary()) is not None
    ]
    return LoadedRun(run, run.manifest(), rows)


def _found(tensors: dict[str, Tensor] | None, what: str, level: int, replicate: int, run: Run) -> dict[str, Tensor]:
    if tensors is None:
        raise FileNotFoundError(f"{run.path} has no {what} of level {level}, replicate {replicate}")
    return tensors
