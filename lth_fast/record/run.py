"""Where everything of a run lies. No other place knows a path::

    <save>/<date>T<time>_<net>_<dataset>[_<suffix>]/      a second one in the same second ends in -2, and so on
        meta.json                       manifest: what was asked for and how it was run
        report.png                      the figure of lth_fast.report
        .lock                           who writes the run
        replicate_<r>/
            initial.safetensors         weights before any training
            <level>/
                iterations.csv          one row per iteration
                masks.safetensors       one bit per weight
                rewind.safetensors      weights the level starts from; of level 0 those at the rewind point
                early_stop.safetensors  weights at the iteration of minimum validation loss
                end.safetensors         weights after the last iteration
                kept_<i>.safetensors    weights after iteration i, where they were asked for
                optimizer.pt            its state after the last iteration, where levels go on with it
                checkpoint.pt           only while the level trains
                summary.json            only once the level is complete

Everything but the growing log is replaced atomically, so a run may be killed at any moment and read at any moment.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from lth_fast.record.atomic import link_file, make_folder, remove_file, replace_file, sync_folder
from lth_fast.record.document import read_document, write_document
from lth_fast.record.iterations import IterationLog
from lth_fast.record.lock import lock_folder
from lth_fast.record.tensors import (
    read_checkpoint,
    read_masks,
    read_weights,
    write_checkpoint,
    write_masks,
    write_weights,
)

FORMAT = 1
"""Version of the layout, kept in every manifest. It grows when an older lth_fast could misread a newer run."""

# What programs read in a manifest that people may have edited.
_TEXTS, _OBJECTS = ("net", "dataset"), ("configuration", "environment", "stepper", "optimizer", "examples")

WeightKind = Literal["rewind", "early_stop", "end"]

Content = TypeVar("Content")


def create_run(save: str | Path, net: str, dataset: str, suffix: str = "") -> Run:
    """Create the folder of a new run in the folder ``save``. No two calls, in any processes, get the same folder.

    It appears with its manifest in it. A process that is killed before may leave a hidden ``.<token>.partial`` behind,
    which no other call looks at.

    Args:
        save: Folder of all runs, created where missing; ``~`` is expanded.
        net: Name of the network.
        dataset: Name of the data set.
        suffix: What sets the run apart, e.g. the branch. May be empty.

    Raises:
        ValueError: A name cannot be part of a folder's name.
        OSError: The folder cannot be written to, or nothing can have its name. It is as it was.
    """
    for argument, name in (("net", net), ("dataset", dataset), ("suffix", suffix)):
        if not name.isprintable() or "/" in name or (argument != "suffix" and not name):
            raise ValueError(f"{argument} should be printable, without /, to be part of a folder's name, got {name!r}")
    moment = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    name = "_".join(filter(None, (moment, net, dataset, suffix)))
    folder = _absolute(save)
    try:
        make_folder(folder)
    except ValueError as error:  # a null byte, or a character that no file's name can have
        raise OSError(errno.EINVAL, str(error)) from error
    path = partial = folder / f".{secrets.token_hex(8)}.partial"
    try:
        partial.mkdir()
        write_document(Run(partial).manifest_file, {"format": FORMAT, "net": net, "dataset": dataset})
        path = _renamed_to_a_free_name(partial, name)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Run(path)


def open_run(path: str | Path) -> Run:
    """Open the run whose folder is ``path``; ``~`` is expanded.

    Raises:
        FileNotFoundError: There is no such folder, or it is not the folder of a run.
        ValueError: The manifest is damaged, or a newer lth_fast wrote the run.
    """
    run = Run(_absolute(path))
    if not run.path.is_dir():
        raise FileNotFoundError(f"no run at {path}: there is no such folder")
    try:
        run.manifest()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no run at {path}: the folder of a run is named <date>T<time>_<net>_<dataset> and holds meta.json and "
            "replicate_0, replicate_1, ..."
        ) from None
    return run


@dataclass(frozen=True)
class Run:
    """A run: some replicates of one experiment. Made by :func:`create_run` and :func:`open_run`.

    Attributes:
        path: Its folder; absolute, so that it stays the same one when the process changes its working directory.
    """

    path: Path

    @property
    def manifest_file(self) -> Path:
        """File of the manifest."""
        return self.path / "meta.json"

    def manifest(self) -> dict[str, Any]:
        """What :meth:`save_manifest` was given, with ``format``, ``net`` and ``dataset``.

        Raises:
            FileNotFoundError: The run has none.
            ValueError: It is damaged or was changed, or a newer lth_fast wrote it.
        """
        file = self.manifest_file
        manifest = read_document(file)
        version = manifest.get("format")
        if not isinstance(version, int) or version < 1:
            raise ValueError(f'{file} is not the manifest of a run: "format" should be a version, got {version!r}')
        if version > FORMAT:
            raise ValueError(
                f"{file} has format {version}, this lth_fast reads up to format {FORMAT}: a newer lth_fast wrote it"
            )
        for name in _TEXTS:
            if not isinstance(manifest.get(name), str):
                raise ValueError(f"{file}: {name}: expected a text, got {manifest.get(name)!r}")
        for name in _OBJECTS:
            if not isinstance(manifest.get(name, {}), dict):
                raise ValueError(f"{file}: {name}: expected a JSON object, got {manifest[name]!r}")
        return manifest

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest. Where it names no ``net`` or ``dataset``, those given to :func:`create_run` stay."""
        names = {key: value for key, value in self.manifest().items() if key in _TEXTS}
        write_document(self.manifest_file, {**names, **manifest, "format": FORMAT})

    def plan(self, level: int) -> dict[str, Any] | None:
        """The form of every layer at ``level``, by parameter name, or None if it was not decided yet."""
        plan: dict[str, Any] | None = self.manifest().get("plan", {}).get(str(level))
        return plan

    def save_plan(self, level: int, plan: Mapping[str, Any]) -> None:
        """Note the form of every layer at ``level`` in the manifest."""
        manifest = self.manifest()
        self.save_manifest({**manifest, "plan": {**manifest.get("plan", {}), str(level): dict(plan)}})

    def save_report(self, png: bytes) -> Path:
        """Replace ``report.png``, the figure of the run, and return its path."""
        file = self.path / "report.png"
        replace_file(file, png)
        return file

    def replicate(self, r: int) -> Replicate:
        """Replicate ``r`` (>= 0), whether or not it was begun."""
        if r < 0:
            raise ValueError(f"a replicate's number should be >= 0, got {r}")
        return Replicate(self.path / f"replicate_{r}", r)

    def replicates(self) -> list[Replicate]:
        """The replicates that were begun, by number."""
        return [Replicate(path, number) for number, path in _numbered(self.path, "replicate_")]

    def lock(self) -> AbstractContextManager[None]:
        """``with run.lock(): ...`` makes this process the run's only writer; see :func:`lock_folder`."""
        return lock_folder(self.path)


@dataclass(frozen=True)
class Replicate:
    """One repetition of the experiment, with its own initial weights and data order."""

    path: Path
    number: int

    @property
    def run(self) -> Run:
        """The run this is a replicate of."""
        return Run(self.path.parent)

    @property
    def initial_file(self) -> Path:
        """File of the initial weights, a source for :meth:`Level.link_weights`."""
        return self.path / "initial.safetensors"

    def level(self, level: int) -> Level:
        """Level ``level`` (>= 0, 0 is unpruned), whether or not it was begun."""
        if level < 0:
            raise ValueError(f"a level's number should be >= 0, got {level}")
        return Level(self.path / str(level), level)

    def levels(self) -> list[Level]:
        """The levels that were begun, by number."""
        return [Level(path, number) for number, path in _numbered(self.path, "")]

    def initial(self) -> dict[str, Tensor] | None:
        """The weights before any training, or None if they were not saved yet."""
        return _if_saved(read_weights, self.initial_file, "delete it, and recovering the run writes it again")

    def save_initial(self, state: Mapping[str, Tensor]) -> None:
        """Save the weights before any training."""
        write_weights(self.initial_file, state)


@dataclass(frozen=True)
class Level:
    """One level of a replicate. What was not saved yet reads as None; a damaged file raises a ValueError naming it."""

    path: Path
    number: int

    @property
    def log(self) -> IterationLog:
        """The log of the level's iterations."""
        return IterationLog(self.path / "iterations.csv")

    @property
    def remedy(self) -> str:
        """What helps where a file of the level is damaged or missing, in words."""
        return f"delete the folder {self.path}, and recovering its run trains the level again"

    @property
    def complete(self) -> bool:
        """Whether the level was trained to its end: its summary is there."""
        return self._summary_file.exists()

    def masks(self) -> dict[str, Tensor] | None:
        """The masks, bool tensors by parameter name in the order they were saved."""
        return _if_saved(read_masks, self._masks_file, self.remedy)

    def save_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Save the masks: bool tensors of any shape, True where a weight survives."""
        write_masks(self._masks_file, masks)

    def weights_file(self, kind: WeightKind) -> Path:
        """File of the weights ``kind``, a source for :meth:`link_weights`."""
        if kind not in get_args(WeightKind):
            raise ValueError(f"kind should be one of {', '.join(get_args(WeightKind))}, got {kind!r}")
        return self.path / f"{kind}.safetensors"

    def weights(self, kind: WeightKind) -> dict[str, Tensor] | None:
        """The state dict ``kind``, CPU tensors in the order they were saved."""
        return _if_saved(read_weights, self.weights_file(kind), self.remedy)

    def save_weights(self, kind: WeightKind, state: Mapping[str, Tensor]) -> None:
        """Save the state dict ``kind``: tensors of any shape and dtype, tied ones too."""
        write_weights(self.weights_file(kind), state)

    def link_weights(self, kind: WeightKind, source: Level | Path) -> None:
        """Save as ``kind`` what is saved already, without a second copy on the disk where the file system can.

        Args:
            kind: What to save.
            source: Another level (its weights of the same kind), or a file (see :meth:`weights_file` and
                :attr:`Replicate.initial_file`).

        Raises:
            FileNotFoundError: The source was not saved.
        """
        link_file(source.weights_file(kind) if isinstance(source, Level) else source, self.weights_file(kind))

    def kept(self, iteration: int) -> dict[str, Tensor] | None:
        """The state dict kept after ``iteration`` updates, or None if none was."""
        return _if_saved(read_weights, self._kept_file(iteration), self.remedy)

    def save_kept(self, iteration: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state dict after ``iteration`` updates, beside the kinds above."""
        write_weights(self._kept_file(iteration), state)

    def optimizer(self) -> dict[str, Any] | None:
        """The optimizer's state after the last iteration, its tensors on the CPU, where it was saved."""
        return _if_saved(read_checkpoint, self._optimizer_file, self.remedy)

    def save_optimizer(self, state: Mapping[str, Any]) -> None:
        """Save the optimizer's state after the last iteration, for runs whose levels go on with it."""
        write_checkpoint(self._optimizer_file, state)

    def checkpoint(self) -> dict[str, Any] | None:
        """The state in the middle of the level, its tensors on the CPU."""
        return _if_saved(read_checkpoint, self._checkpoint_file, "delete it, and the level begins anew")

    def save_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Save the state in the middle of the level: tensors and plain Python values, nested in lists and dicts."""
        write_checkpoint(self._checkpoint_file, checkpoint)

    def summary(self) -> dict[str, Any] | None:
        """The results of the complete level."""
        return _if_saved(read_document, self._summary_file, self.remedy)

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Save the results, which makes the level complete, then remove its checkpoint."""
        write_document(self._summary_file, summary)
        self.remove_checkpoint()

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint of the complete level and what a process killed while it wrote one may have left."""
        remove_file(self._checkpoint_file)

    @property
    def _masks_file(self) -> Path:
        return self.path / "masks.safetensors"

    def _kept_file(self, iteration: int) -> Path:
        return self.path / f"kept_{iteration}.safetensors"

    @property
    def _optimizer_file(self) -> Path:
        return self.path / "optimizer.pt"

    @property
    def _checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def _summary_file(self) -> Path:
        return self.path / "summary.json"


def _renamed_to_a_free_name(folder: Path, name: str) -> Path:
    """Rename ``folder`` to the first of ``<name>``, ``<name>-2``, ... that is free, and return its path then."""
    for number in count(1):
        path = folder.with_name(name if number == 1 else f"{name}-{number}")
        try:
            os.rename(folder, path)  # onto a run's folder it fails, for that is not empty
        except OSError:
            if not os.path.lexists(path):
                raise
        else:
            break
    return path


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _if_saved(read: Callable[[Path], Content], file: Path, remedy: str) -> Content | None:
    """What ``read`` makes of ``file``, or None where there is none; where it is damaged, the error tells the remedy."""
    try:
        return read(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The folders ``<prefix><number>`` in ``folder``, by number; none where ``folder`` is missing."""
    pattern = re.compile(re.escape(prefix) + r"(0|[1-9][0-9]*)")
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = [(pattern.fullmatch(path.name), path) for path in paths if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in matches if match)
