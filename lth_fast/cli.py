"""The command line: ``python -m lth_fast NET DATASET``, ``… info``, ``… report DIR``."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import Any

import lth_fast
from lth_fast import data, models
from lth_fast.experiment.command import Interrupted, recover_command, run_command
from lth_fast.experiment.config import Config
from lth_fast.experiment.environment import information
from lth_fast.experiment.flags import FLAGS
from lth_fast.record import Run, RunInUseError, open_run
from lth_fast.report import figure, table

USAGE_ERROR, FAILURE, INTERRUPT = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; ``None``: those of the process.

    Returns:
        0: done; 1: a run ended early; 2: wrong arguments or missing data; 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = _COMMANDS.get(given[0]) if given else None
    try:
        return command(given[1:]) if command else _experiment(given)
    except (ValueError, FileNotFoundError, ImportError, RunInUseError) as error:
        return _fail(str(error), USAGE_ERROR)
    except Interrupted as interrupted:
        return _interrupted(interrupted)
    except KeyboardInterrupt:
        return _fail("interrupted before anything was started", INTERRUPT)


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m lth_fast NET DATASET``. Flags that are not given are absent from its result."""
    result = argparse.ArgumentParser(
        prog="python -m lth_fast",
        usage="python -m lth_fast NET DATASET [flags] | info | report DIR",
        description="Run experiments with iterative pruning, identifying lottery tickets.",
        epilog="info prints versions, build and devices; report DIR prints the table of a run and draws its figure.",
        argument_default=argparse.SUPPRESS,
    )
    result.add_argument("net", nargs="?", metavar="NET", help=f"network: {', '.join(models.models)}")
    result.add_argument("dataset", nargs="?", metavar="DATASET", help=f"data set: {', '.join(data.datasets)}")
    for flag in FLAGS:
        spellings = (*flag.short, *dict.fromkeys((f"--{flag.name}", f"--{flag.name.replace('_', '-')}")))
        if flag.parse is None:
            result.add_argument(*spellings, action="store_true", help=flag.help)
        else:
            result.add_argument(*spellings, metavar="", help=f"{flag.help} ({_default(flag.name)})")
    result.add_argument("--recover", metavar="DIR", help="go on with the run in this folder, with its own settings")
    result.add_argument("--force", action="store_true", help="recover also where the bits may come out differently")
    result.add_argument("--quiet", action="store_true", help="print nothing but errors")
    result.add_argument("--version", action="version", version=f"lth_fast {lth_fast.__version__}")
    return result


def _default(name: str) -> str:
    if name in ("seed", "init_seed", "order_seed", "threads"):
        return "default: see the text" if name == "threads" else "default: none"
    value = getattr(Config, name)
    preset = {"batch_size", "optim", "learn_rate", "iter"}
    return f"default: {value}" + (" or the paper's for this network" if name in preset else "")


def _experiment(arguments: list[str]) -> int:
    given: dict[str, Any] = vars(parser().parse_args(arguments))
    net, dataset = given.pop("net", None), given.pop("dataset", None)
    recover, force, quiet = given.pop("recover", None), given.pop("force", False), given.pop("quiet", False)
    if recover is not None:
        run = recover_command(recover, net, dataset, given, quiet=quiet, force=force)
    elif net is None or dataset is None:
        missing = "a network and a data set" if net is None else "a data set"
        raise ValueError(
            f"expected {missing}: python -m lth_fast NET DATASET, e.g. python -m lth_fast lenet digits "
            f"(networks: {', '.join(models.models)}; data sets: {', '.join(data.datasets)})"
        )
    elif force:
        raise ValueError("--force: expected together with --recover")
    else:
        run = run_command(net, dataset, given, quiet=quiet)
    if not quiet:
        _print_report(run)
    return 0


def _info(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="python -m lth_fast info", description="Versions, build, devices.").parse_args(
        arguments
    )
    print(information())
    return 0


def _report(arguments: list[str]) -> int:
    command = argparse.ArgumentParser(prog="python -m lth_fast report", description="Table and figure of a run.")
    command.add_argument("dir", metavar="DIR", help="folder of the run")
    _print_report(open_run(command.parse_args(arguments).dir))
    return 0


_COMMANDS = {"info": _info, "report": _report}


def _print_report(run: Run) -> None:
    print(table(run))
    try:
        print(f"figure: {figure(run)}")
    except ImportError as error:
        print(f"no figure: {error}")


def _interrupted(interrupted: Interrupted) -> int:
    path, cause = interrupted.run.path, interrupted.cause
    again = f"go on with: python -m lth_fast --recover {path}"
    if isinstance(cause, KeyboardInterrupt):
        return _fail(f"interrupted; {again}", INTERRUPT)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(f"no space is left for {path} ({cause}); free some, then {again}", FAILURE)
    return _fail(f"{cause}; {again}", FAILURE)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
