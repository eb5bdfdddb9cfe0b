"""A run that dies at any write, in any way, goes on to the same bits. (tests/cli kills whole processes.)"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lth_fast.experiment import level as level_module
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.train import OptimizerRecipe
from lth_fast.train.schedule import StepSchedule

CALLS = ("write", "fsync", "replace", "link")


class Killed(BaseException):
    """The process is gone: nothing after this happens, no cleaning up either."""


class Disk:
    """Counts what is done to the disk and, at the call ``last``, stops: dead (half a write done), or full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    @contextmanager
    def watched(self, last: int | None, *, full: bool = False) -> Iterator[list[str]]:
        calls: list[str] = []
        real = {name: getattr(os, name) for name in (*CALLS, "ftruncate")}
        unlink = Path.unlink

        def stopping(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                if last is not None and len(calls) >= last:
                    if name == "write":
                        real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                    if full:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        def dead() -> bool:
            return not full and last is not None and len(calls) >= last

        with self._patch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, stopping(name))
            patch.setattr(os, "ftruncate", lambda *args: None if dead() else real["ftruncate"](*args))
            patch.setattr(Path, "unlink", lambda path, **kwargs: None if dead() else unlink(path, **kwargs))
            yield calls


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    # One step per chunk, a checkpoint after each: the calls are the same every time, however fast the machine is.
    monkeypatch.setattr(level_module, "CHUNK_SECONDS", 0.0)
    return Disk(monkeypatch)


def data_loader(loaders, generator):
    dataset = loaders.train.dataset
    options = {"generator": torch.Generator()} if generator == "loader" else {}
    if generator == "sampler":
        options["sampler"] = RandomSampler(dataset, generator=torch.Generator())
    else:
        options["shuffle"] = True
    return loaders._replace(train=DataLoader(dataset, batch_size=10, **options))


@pytest.fixture(
    params=["adam", "momentum", "adagrad", "schedule", "data loader", "loader's generator", "sampler's generator"]
)
def experiment(request, make_experiment):
    """7 batches per epoch, rewinding to 3: checkpoints before and behind it, inside an epoch and between two."""
    changes: dict[str, Any] = {"checkpoint_seconds": 0.0, "rewind": 3, "rounds": 1, "iterations": 9}
    if request.param == "momentum":
        changes["optimizer"] = OptimizerRecipe(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3})
    elif request.param == "adagrad":  # has a state before its first step, which follows the layers that turn sparse
        changes |= {"optimizer": OptimizerRecipe.named("adagrad", 0.1), "plan": "sparse"}
    elif request.param == "schedule":  # rises and falls, so that every checkpoint holds a rate that was scaled
        changes["schedule"] = StepSchedule(warmup=3, milestones=(3, 6))
    elif request.param != "adam":
        changes["loaders"] = data_loader(make_experiment().loaders, request.param.split("'")[0])
    return make_experiment(**changes)


@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
def test_a_run_that_stops_at_any_write_goes_on_to_the_same_bits(experiment, disk, full, new_run, bits, request):
    reference = new_run()
    with disk.watched(None) as calls:
        run_replicate(experiment, reference.replicate(0), Monitor())
    assert set(calls) == set(CALLS)
    expected = bits(reference)

    drawn = random.Random(request.node.name)
    for last in sorted(drawn.sample(range(1, len(calls) + 1), 5)):
        run = new_run()
        with disk.watched(last, full=full), pytest.raises(OSError if full else Killed):
            run_replicate(experiment, run.replicate(0), Monitor())
        with suppress(OSError, Killed), disk.watched(drawn.randrange(1, 40), full=full):  # once more, further on
            run_replicate(experiment, run.replicate(0), Monitor())
        run_replicate(experiment, run.replicate(0), Monitor())
        assert bits(run) == expected, f"stopped at call {last} of {len(calls)}, {calls[last - 1]}"


@pytest.mark.parametrize("stop", [2, 8, 14], ids=["inside an epoch", "between two epochs", "in a rewound level"])
def test_a_run_that_is_interrupted_between_two_steps_goes_on_to_the_same_bits(stop, experiment, disk, new_run, bits):

    class Interrupting(Monitor):
        calls = 0

        def stepped(self, iteration, losses):
            self.calls += 1
            if self.calls == stop:
                raise KeyboardInterrupt

    reference, run = new_run(), new_run()
    run_replicate(experiment, reference.replicate(0), Monitor())
    with pytest.raises(KeyboardInterrupt):
        run_replicate(experiment, run.replicate(0), Interrupting())
    run_replicate(experiment, run.replicate(0), Monitor())
    assert bits(run) == bits(reference)


def test_an_early_stop_before_the_interruption_is_not_forgotten(make_experiment, disk, new_run, bits):
    class WorseAsItLearns(nn.CrossEntropyLoss):
        def forward(self, outputs, labels):
            loss = super().forward(outputs, labels)
            return loss if torch.is_grad_enabled() else -loss

    experiment = make_experiment(criterion=WorseAsItLearns(), evaluate_every=1, rounds=0, checkpoint_seconds=0.0)

    class Interrupting(Monitor):
        def stepped(self, iteration, losses):
            if iteration == 11:
                raise KeyboardInterrupt

    reference, run = new_run(), new_run()
    run_replicate(experiment, reference.replicate(0), Monitor())
    assert reference.replicate(0).level(0).summary()["early_stop_iteration"] < 10
    with pytest.raises(KeyboardInterrupt):
        run_replicate(experiment, run.replicate(0), Interrupting())
    run_replicate(experiment, run.replicate(0), Monitor())
    assert bits(run) == bits(reference)


def test_the_time_before_an_interruption_counts(make_experiment, disk, record):
    experiment = make_experiment(checkpoint_seconds=0.0, rounds=0)
    level = record.level(0)

    class Crashing(Monitor):
        def stepped(self, iteration, losses):
            if iteration == 8:
                raise Killed

    with pytest.raises(Killed):
        run_replicate(experiment, record, Crashing())
    level.save_checkpoint({**level.checkpoint(), "seconds": 2000.0, "train_seconds": 1000.0})
    run_replicate(experiment, record, Monitor())
    assert 2000 < level.summary()["seconds"] < 2100
    assert 1000 < level.summary()["train_seconds"] < 1100


def test_rows_behind_the_checkpoint_are_written_once(make_experiment, disk, record):
    """The log reaches the disk before the checkpoint that counts on it; what is behind it is trained again."""
    experiment = make_experiment(checkpoint_seconds=0.0, rounds=0)
    level = record.level(0)
    with disk.watched(None) as calls:
        run_replicate(experiment, record, Monitor())
    complete = level.log.path.read_bytes()
    level.path.joinpath("summary.json").unlink()
    level.log.path.unlink()

    saved = []

    class Crashing(Monitor):
        def stepped(self, iteration, losses):
            saved.append((level.checkpoint() or {}).get("iteration", 0))
            if iteration == 8:
                raise Killed

    with pytest.raises(Killed):
        run_replicate(experiment, record, Crashing())
    assert saved == [*range(8)]
    with level.log.path.open("ab") as file:
        file.write(b"8,0.123,0,nan")
    run_replicate(experiment, record, Monitor())
    assert level.log.path.read_bytes() == complete
    assert calls.count("fsync") > 12


def test_a_log_shorter_than_its_checkpoint_is_reported_not_papered_over(make_experiment, disk, record):
    class Crashing(Monitor):
        def stepped(self, iteration, losses):
            if iteration == 6:
                raise Killed

    with pytest.raises(Killed):
        run_replicate(make_experiment(checkpoint_seconds=0.0, rounds=0), record, Crashing())
    record.level(0).log.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"iterations.csv has 0 bytes, expected at least"):
        run_replicate(make_experiment(rounds=0), record, Monitor())
