"""``python -m lth_fast NET DATASET``: one run from flags to table and figure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lth_fast.experiment.build import build_experiment, device_of
from lth_fast.experiment.config import Config
from lth_fast.experiment.progress import monitor_for
from lth_fast.experiment.session import run_in
from lth_fast.record import Run, create_run, open_run
from lth_fast.train import choose_stepper


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
        ValueError, FileNotFoundError, ImportError: Nothing was started; the message says why.
        Interrupted: It was started and ended early.
    """
    config = Config.resolve(net, dataset, given)
    device_of(config)
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
    """Go on with the run in the folder ``path``; arguments as of :func:`run_command`, none may contradict the run's."""
    run = open_run(path)
    configuration = run.manifest().get("configuration")
    if configuration is None:
        raise ValueError(f"{path}: this run was stopped before it was set up; start it anew")
    if "made_by" in configuration:
        raise ValueError(f"{path} was made by {configuration['made_by']}; go on with it there: recover={str(path)!r}")
    config = Config.from_record(configuration).recovered_with(net, dataset, given)
    return _run(config, run, quiet=quiet, force=force)


def _run(config: Config, recovered: Run | None, *, quiet: bool, force: bool) -> Run:
    experiment = build_experiment(config)
    run = recovered or create_run(config.save, config.net.replace(":", "-"), config.dataset)
    if not quiet:
        print(f"run:     {run.path}", file=sys.stderr)
        print(f"stepper: {choose_stepper()}", file=sys.stderr)
    monitor = monitor_for(quiet, config.rounds + 1)
    try:
        run_in(
            run,
            experiment,
            config.to_record(),
            monitor,
            threads=config.threads,
            recovering=recovered is not None,
            force=force,
        )
    except (KeyboardInterrupt, OSError) as error:
        raise Interrupted(run, error) from error
    return run
