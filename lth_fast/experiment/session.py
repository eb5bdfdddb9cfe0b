"""Running an experiment into its folder: lock, manifest, threads, random state, and the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import torch

from lth_fast.experiment.environment import describe, differences
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.record import Run
from lth_fast.train import choose_stepper


def run_in(
    run: Run,
    experiment: Experiment,
    configuration: Mapping[str, Any],
    monitor: Monitor,
    *,
    threads: int | None = None,
    recovering: bool = False,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Run ``experiment`` in the folder of ``run``, or go on with it there.

    Args:
        run: A run's folder.
        experiment: What to run.
        configuration: Its settings, for the manifest of a new run.
        monitor: Told of the progress; closed at the end, however it comes.
        threads: CPU threads of torch while it runs; ``None`` leaves them.
        recovering: Whether the folder holds the beginning of this run.
        force: Go on also where another torch, CPU, instruction set or thread count may change the bits.

    Returns:
        The summary of every level.

    Raises:
        ValueError: Recovering in another environment without ``force``.
        RunInUseError: Another process is at work in the folder.
    """
    with run.lock(), _threads(threads), _own_random_state(experiment.device):
        found = describe(experiment.device)
        if recovering:
            changed = differences(run.manifest()["environment"], found)
            if changed and not force:
                raise ValueError(
                    f"{run.path}: going on here may not give the same bits ({'; '.join(changed)}); "
                    "use --force to go on all the same"
                )
            if changed:
                manifest = run.manifest()
                manifest.setdefault("recovered_in", []).append(found)
                run.save_manifest(manifest)
        else:
            run.save_manifest(_manifest(experiment, configuration, found))
        try:
            return run_replicate(experiment, run.replicate(experiment.replicate), monitor)
        finally:
            monitor.close()


def _manifest(experiment: Experiment, configuration: Mapping[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    choice = choose_stepper()
    sizes = {name: _size(loader) for name, loader in experiment.loaders._asdict().items() if loader is not None}
    return {
        "configuration": dict(configuration),
        "environment": environment,
        "stepper": {"name": choice.name, "refused": choice.refused},
        "optimizer": experiment.optimizer.describe(),
        "model": repr(experiment.model),
        "examples": sizes,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _size(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave the caller's global generators as they were: the run seeds them for itself."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
