"""The command line: ``python -m lth_fast NET DATASET``, ``… info``, ``… report DIR …``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lth_fast
from lth_fast import data, models
from lth_fast._C import active_isa
from lth_fast._names import match_name
from lth_fast.experiment.branch import source_of
from lth_fast.experiment.command import Interrupted, recover_command, run_command
from lth_fast.experiment.config import Config
from lth_fast.experiment.environment import information
from lth_fast.experiment.flags import BY_NAME, FLAGS
from lth_fast.experiment.presets import every_setting
from lth_fast.experiment.ticket import located
from lth_fast.record import Run, RunInUseError, open_run
from lth_fast.report import comparison, comparison_figure, figure, table

USAGE_ERROR, FAILURE, INTERRUPT = 2, 1, 130

# The long flags beside those of a run's settings.
_OTHER_FLAGS = ("recover", "force", "quiet", "version", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; ``None``: those of the process.

    Returns:
        0: done; 1: a run ended early; 2: wrong arguments or missing data; 130: interrupted.
    """
    _print_whatever_comes()
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = _COMMANDS.get(given[0]) if given else None
    try:
        return command(given[1:]) if command else _experiment(given)
    except (ValueError, FileNotFoundError, ImportError, RunInUseError) as error:
        return _fail(str(error), USAGE_ERROR)
    except Interrupted as interrupted:
        return _interrupted(interrupted)
    except BrokenPipeError:
        # Whoever read has seen enough (`| head`); Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        return _fail(str(error), FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted before anything was started", INTERRUPT)


def _print_whatever_comes() -> None:
    """Neither a character that the terminal lacks (the ± of a table) nor a closed stream ends a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


class Parser(argparse.ArgumentParser):
    """Refuses by a ValueError, which :func:`main` prints as it prints its own."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> Parser:
    """The parser of ``python -m lth_fast NET DATASET``. Flags that are not given are absent from its result."""
    result = Parser(
        prog="python -m lth_fast",
        usage="python -m lth_fast NET DATASET [flags] | info | report DIR ...",
        description="Run experiments with iterative pruning, identifying lottery tickets.",
        epilog="info prints versions, build and devices; report DIR prints the table of a run and draws its figure, "
        "report DIR DIR ... those of several runs side by side, a ticket search and its controls for instance.",
        argument_default=argparse.SUPPRESS,
    )
    others = (
        "lenet:500-200 (its hidden sizes), torchvision:resnet18 (any of its names) or module:function (yours: called "
        "with those of input_shape, classes and dropout that it names; --init draws its weights)"
    )
    result.add_argument("net", nargs="?", metavar="NET", help=f"network: {', '.join(models.models)}, {others}")
    result.add_argument("dataset", nargs="?", metavar="DATASET", help=f"data set: {', '.join(data.datasets)}")
    for flag in FLAGS:
        spellings = (*flag.short, f"--{flag.name}")
        if flag.parse is None:
            result.add_argument(*spellings, action="store_true", help=flag.help)
            if flag.negatable:
                off = f"switch off --{flag.name} where a preset has it on"
                result.add_argument(f"--no_{flag.name}", dest=flag.name, action="store_false", help=off)
        else:
            result.add_argument(*spellings, help=f"{flag.help} ({_default(flag.name)})")
    result.add_argument("--recover", metavar="DIR", help="go on with the run in this folder, with its own settings")
    result.add_argument("--force", action="store_true", help="recover also where the bits may come out differently")
    result.add_argument("--quiet", action="store_true", help="print nothing but errors")
    result.add_argument("--version", action="version", version=f"lth_fast {lth_fast.__version__}")
    return result


def _default(name: str) -> str:
    words = {
        "seed": "none",
        "init_seed": "none",
        "order_seed": "none",
        "fc_rate": "none",
        "validation": "5000, of digits 250",
        "whole": "output with --scope global, else none",
        "keep": "none",
        "milestones": "none",
        "threads": "1 for lenet, else all",
        "init": "glorot for lenet and conv, else kaiming",
    }
    value = words.get(name, getattr(Config, name, None))
    return f"default: {value}" + (", or the preset's" if any(name in preset for preset in every_setting()) else "")


def _canonical_flags(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with every long flag in its one spelling: any case, dashes and unambiguous beginnings are known.

    argparse knows prefixes, but takes two spellings of one flag for two flags, and ``-pr0.3`` for ``-p r0.3``.
    """
    longer = [short for flag in FLAGS for short in flag.short if len(short) > 2]
    negations = (f"no_{flag.name}" for flag in FLAGS if flag.negatable)
    known = [f"--{name}" for name in (*BY_NAME, *negations, *_OTHER_FLAGS)]
    canonical = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            flag = match_name(flag, known, "flag")
        elif not equals:
            glued = next((short for short in longer if flag.startswith(short) and flag != short), None)
            if glued is not None:
                flag, equals, value = glued, "=", flag.removeprefix(glued)
        canonical.append(flag + equals + value)
    return canonical


def _experiment(arguments: list[str]) -> int:
    active_isa()  # before there is a folder, for LTH_FAST_ISA may name one that cannot be used
    # Intermixed: a flag may also stand between the network and the data set.
    given: dict[str, Any] = vars(parser().parse_intermixed_args(_canonical_flags(arguments)))
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
    try:
        code = _report_on(run, quiet=quiet)
        configuration = run.manifest()["configuration"]
        if configuration.get("ticket") is not None and not quiet:
            source = Run(located(configuration["ticket"], run))
            print(f"beside its {source_of(configuration['branch'])} run: {_report_command(source, run)}")
        return code
    except KeyboardInterrupt as interrupt:
        raise Interrupted(run, interrupt) from interrupt


def _info(arguments: list[str]) -> int:
    Parser(prog="python -m lth_fast info", description="Versions, build, devices.").parse_args(arguments)
    print(information(), flush=True)
    return 0


def _report(arguments: list[str]) -> int:
    command = Parser(
        prog="python -m lth_fast report",
        description="Print a table of the complete levels of a run, also of one under way, and draw it to "
        "DIR/report.png: density, the iteration of minimum validation loss (early stop), test accuracy there and after "
        "the last iteration, seconds, and training iterations per second; over replicates mean and sample standard "
        "deviation. Of several runs accuracies and iterations side by side, drawn to comparison.png beside the first.",
    )
    command.add_argument("dirs", metavar="DIR", nargs="+", help="folder of a run")
    runs = [open_run(folder) for folder in command.parse_args(arguments).dirs]
    return _report_on(*runs) if len(runs) == 1 else _compare(runs)


_COMMANDS = {"info": _info, "report": _report}


def _report_on(run: Run, *, quiet: bool = False) -> int:
    """Draw the figure, and print it and the table unless ``quiet``."""
    if not quiet:
        print(table(run), flush=True)
    return _draw(lambda: figure(run), [run], quiet=quiet)


def _compare(runs: Sequence[Run]) -> int:
    """Print ``runs`` side by side and draw them into one figure."""
    print(comparison(runs), flush=True)
    return _draw(lambda: comparison_figure(runs), runs)


def _draw(draw: Callable[[], Path], runs: Sequence[Run], *, quiet: bool = False) -> int:
    try:
        drawn = f"figure: {draw()}"
    except ImportError as error:
        drawn = f"no figure: {error}"
    except OSError as error:
        return _fail(f"the figure cannot be written ({error}); draw it with: {_report_command(*runs)}", FAILURE)
    if not quiet:
        print(drawn)
    return 0


def _report_command(*runs: Run) -> str:
    return f"python -m lth_fast report {shlex.join(str(run.path) for run in runs)}"


def _interrupted(interrupted: Interrupted) -> int:
    path, cause = interrupted.run.path, interrupted.cause
    again = f"go on with: python -m lth_fast --recover {shlex.quote(str(path))}"
    with contextlib.suppress(OSError, ValueError):  # of the disk that ended the run
        if "configuration" not in interrupted.run.manifest():
            again = "start it anew, it was not set up yet"
    if isinstance(cause, ValueError):
        return _fail(f"{path}: {cause}", FAILURE)
    if isinstance(cause, KeyboardInterrupt):
        return _fail(f"interrupted; {again}", INTERRUPT)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(f"no space is left for {path} ({cause}); free some, then {again}", FAILURE)
    if not isinstance(cause, OSError):  # nothing foreseen: whoever wrote the network wants to see where
        traceback.print_exception(cause)
    return _fail(f"{cause}; {again}", FAILURE)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
