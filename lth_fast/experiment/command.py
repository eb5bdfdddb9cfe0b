"""``python -m lth_fast NET DATASET``: one run from flags to records."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lth_fast.experiment.agreement import RunRefusedError
from lth_fast.experiment.branch import source_of
from lth_fast.experiment.build import build_experiment, training_device
from lth_fast.experiment.config import Config
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.presets import shown_to_fail
from lth_fast.experiment.progress import monitor_for
from lth_fast.experiment.session import new_run, run_in
from lth_fast.experiment.ticket import NOT_COMPARED, check_fit, complete, located
from lth_fast.record import Run, RunInUseError, open_run


class Interrupted(Exception):
    """A run ended before its time; its folder can be recovered.

    Attributes:
        run: The run.
        cause: What ended it.
    """

    def __init__(self, run: Run, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.run = run
        self.cause = cause


def run_command(net: str, dataset: str, given: Mapping[str, Any], *, quiet: bool = False) -> Run:
    """Start a run.

    Args:
        net: Network.
        dataset: Data set.
        given: Values by flag name.
        quiet: Print nothing but errors.

    Raises:
        ValueError, OSError, ImportError: Nothing was started; the message says why.
        Interrupted: It was started and ended early.
    """
    config = Config.resolve(net, dataset, given)
    try:
        training_device(config.gpu)
    except ValueError as error:
        of_a_gpu = ("gpu", "precision") if config.precision == "tf32" else ("gpu",)
        on_the_cpu = [net, dataset, *(_typed(name, value) for name, value in given.items() if name not in of_a_gpu)]
        on_the_cpu += ["--quiet"] if quiet else []
        raise ValueError(f"{error}; run on the CPU with: python -m lth_fast {shlex.join(on_the_cpu)}") from None
    warning = shown_to_fail(config.net, config.rewind, config.learn_rate, config.optim, config.retrain)
    if warning and not quiet:
        print(f"WARNING  {warning}", file=sys.stderr)
    if config.branch != "ticket":
        config = _after_its_source(config, quiet)
    return _run(config, None, quiet=quiet, force=False)


def recover_command(
    path: str,
    net: str | None,
    dataset: str | None,
    given: Mapping[str, Any],
    *,
    quiet: bool = False,
    force: bool = False,
) -> Run:
    """Go on with the run in the folder ``path``; arguments as of :func:`run_command`, none may contradict the run's.

    A complete run is returned as it is, wherever it was made.

    Raises:
        ValueError, OSError, ImportError, RunInUseError: The run cannot go on, or not here; the message says why.
        Interrupted: It went on and ended early.
    """
    run = open_run(path)
    configuration = run.manifest().get("configuration")
    if configuration is None:
        raise ValueError(f"{path}: this run was stopped before it was set up; start it anew")
    if "made_by" in configuration:
        raise ValueError(f"{path} was made by {configuration['made_by']}; go on with it there: recover={str(path)!r}")
    try:
        recorded = Config.from_record(configuration)
    except ValueError as error:
        raise ValueError(f"{run.manifest_file}: configuration: {error}") from None
    config = recorded.recovered_with(net, dataset, given, force=force)
    if complete(run, config.replicates, config.rounds):
        run.replicate(config.replicates - 1).level(config.rounds).remove_checkpoint()
        return run
    return _run(config, run, quiet=quiet, force=force)


def _after_its_source(config: Config, quiet: bool) -> Config:
    """``config`` of a control arm with the run it is compared with, which is run first where there is none."""
    source, run = source_of(config.branch), find_source(config)
    if run is None:
        if not quiet:
            print(f"no finished {source} run of these settings in {config.save}: running it first", file=sys.stderr)
        first = dataclasses.replace(config, branch=source)
        run = _run(first if source == "ticket" else _after_its_source(first, quiet), None, quiet=quiet, force=False)
    elif not quiet:
        print(f"masks of the {source} run {run.path}", file=sys.stderr)
    seed = run.manifest()["configuration"]["seed"]
    return dataclasses.replace(config, seed=seed, ticket=str(run.path))


def find_source(config: Config) -> Run | None:
    """The newest finished run in the save folder that the control arm ``config`` of the same settings is compared with.

    A seed that was not given may be any. Where and on how many threads it ran does not matter; it has at least as many
    replicates.
    """
    folder = Path(os.path.expanduser(config.save))
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        try:
            run = open_run(path)
            other = Config.from_record(run.manifest()["configuration"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        same = {name: getattr(config, name) for name in NOT_COMPARED}
        if config.sources.get("seed") != "given":
            same["seed"] = config.seed
        fits = other.branch == source_of(config.branch) and dataclasses.replace(other, **same) == config
        if fits and complete(run, config.replicates, config.rounds):
            return run
    return None


def _run(config: Config, recovered: Run | None, *, quiet: bool, force: bool) -> Run:
    ticket = None if config.ticket is None else open_run(located(config.ticket, recovered))
    experiment = build_experiment(config, ticket, quiet=quiet)
    if ticket is not None and recovered is None:
        _check_ticket(config, experiment)
    run = recovered or new_run(config.save, config.net, config.dataset, config.branch, called="--save")
    try:
        run_in(
            run,
            experiment,
            config.to_record(),
            monitor_for(quiet, config.rounds + 1),
            threads=config.threads,
            recovering=recovered is not None,
            force=force,
        )
    except (RunRefusedError, RunInUseError):
        raise
    except (KeyboardInterrupt, Exception) as error:
        raise Interrupted(run, error) from error
    return run


def _check_ticket(config: Config, experiment: Experiment) -> None:
    """Refuse a control arm of a run that is damaged, or had another network or data behind the same flags."""
    try:
        # The flags, which are the same, say which optimizer: on another device it may be of another package.
        check_fit(experiment, but=("optimizer",))
    except ValueError as error:
        raise ValueError(f"--branch {config.branch}: {error}; without it, a new ticket run is trained") from error


def _typed(name: str, value: Any) -> str:
    """A flag as it is typed on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name}={value}"
