"""Running an experiment into its folder: lock, manifest, threads, random state, and the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lth_fast.experiment.agreement import RunRefusedError, check_network, compared, unlike
from lth_fast.experiment.environment import describe, differences
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.forms import RULES, recorded_plan
from lth_fast.experiment.forms import obstacle as forms_obstacle
from lth_fast.experiment.lottery import run_replicates
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.stepping import choose
from lth_fast.record import Run, create_run
from lth_fast.train import StepperChoice, own_random_state
from lth_fast.train.choice import STEPPERS_OF_THE_SAME_BITS
from lth_fast.train.precision import float32_arithmetic


def new_run(save: str | Path, net: str, dataset: str, branch: str, called: str) -> Run:
    """Create the folder of a new run in the folder ``save``, which messages call ``called``.

    Raises:
        ValueError: ``save`` cannot be a folder to write to.
        OSError: No space is left.
    """
    # Of module:function, and of whatever a loader is called.
    net, dataset, branch = (re.sub("[:/]", "-", name) for name in (net, dataset, branch))
    try:
        return create_run(save, net, dataset, "" if branch == "ticket" else branch)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"{called}: expected a folder to write to, got {str(save)!r} ({error})") from error


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
        The summary of every level of every replicate.

    Raises:
        RunRefusedError: Recovering with other data or another optimizer, or without ``force`` with another network or
            criterion or in another environment.
        RunInUseError: Another process is at work in the folder.
    """
    with (
        run.lock(),
        _threads(threads),
        own_random_state(experiment.device),
        float32_arithmetic(experiment.precision),
    ):
        choice = choose(experiment)
        manifest = _manifest(experiment, configuration, choice)
        if recovering:
            manifest = _continued(run, experiment, manifest, force)
        elif experiment.plan not in RULES and forms_obstacle(experiment) is None:
            manifest["plan"] = recorded_plan(experiment.plan)
        run.save_manifest(manifest)
        monitor.run_begins(run.path, choice)
        try:
            return run_replicates(dataclasses.replace(experiment, stepper=choice.name), run, monitor)
        finally:
            monitor.close()


def _continued(run: Run, experiment: Experiment, found: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """The manifest of ``run``, which goes on with ``experiment`` in an environment and with things as ``found``."""
    manifest = run.manifest()
    initial = run.replicate(experiment.replicate).initial()
    if initial is not None:
        check_network(experiment.model.state_dict(), initial, f"the run {run.path}")
    others = unlike(experiment, manifest)
    for key in ("optimizer", "examples", "batches"):
        if key in others:
            there, here = others.pop(key)
            raise RunRefusedError(f"{run.path}: {key}: expected the run's own, {there}, got {here}")
    try:
        recorded_plan(str(run.path))
    except ValueError as error:
        raise RunRefusedError(str(error)) from None
    # Another torch may describe the same network and loss in other words.
    changed = [f"{key}: the run had {there}, here is {here}" for key, (there, here) in others.items()]
    changed += differences(manifest.get("environment", {}), found["environment"])
    steppers = manifest.get("stepper", {}).get("name"), found["stepper"]["name"]
    if steppers[0] != steppers[1] and any(name not in STEPPERS_OF_THE_SAME_BITS for name in steppers):
        changed.append(f"stepper: the run had {steppers[0]}, here is {steppers[1]}")
    if changed and not force:
        forcing = "force=True" if "made_by" in manifest["configuration"] else "--force"
        raise RunRefusedError(
            f"{run.path}: going on here may not give the same bits ({'; '.join(changed)}); "
            f"use {forcing} to go on all the same"
        )
    if changed:
        manifest.setdefault("recovered_in", []).append(found["environment"])
    return manifest


def _manifest(experiment: Experiment, configuration: Mapping[str, Any], choice: StepperChoice) -> dict[str, Any]:
    obstacle = forms_obstacle(experiment)
    return {
        "configuration": dict(configuration),
        "environment": describe(experiment.device),
        "stepper": {"name": choice.name, "refused": choice.refused},
        **compared(experiment),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "forms": "masked: " + obstacle if obstacle else experiment.plan,
    }


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
