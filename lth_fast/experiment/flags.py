"""Every setting of a run: its flag, what values it takes, what it means. The one place where they are listed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lth_fast.train.optimizers import optimizer_class

Parse = Callable[[Any], Any]


@dataclass(frozen=True)
class Flag:
    """A setting.

    Attributes:
        name: As in ``--name`` and as a keyword of ``iterative_pruning``.
        help: One line.
        parse: From a string or a Python value to the value; ValueError says what is expected. ``None``: a switch.
        short: The reference project's short forms.
    """

    name: str
    help: str
    parse: Parse | None = None
    short: tuple[str, ...] = ()

    def read(self, given: Any) -> Any:
        """The value that ``given`` stands for.

        Raises:
            ValueError: It stands for none; the message names the flag, what is expected and what was given.
        """
        if self.parse is None:
            return bool(given)
        try:
            return self.parse(given)
        except ValueError as error:
            raise ValueError(f"--{self.name}: expected {error}, got {given!r}") from None


def integer(minimum: int, also: tuple[int, ...] = ()) -> Parse:
    """Whole numbers from ``minimum`` on, and those of ``also``."""

    def parse(given: Any) -> int:
        expected = f"a whole number >= {minimum}" + "".join(f" or {value}" for value in also)
        try:
            if isinstance(given, (bool, float)):
                raise ValueError
            value = int(given)
        except (TypeError, ValueError):
            raise ValueError(expected) from None
        if value < minimum and value not in also:
            raise ValueError(expected)
        return value

    return parse


def number(minimum: float, maximum: float = math.inf, *, above: bool = False) -> Parse:
    """Finite numbers from ``minimum`` (or, with ``above``, greater than it) to ``maximum``."""

    def parse(given: Any) -> float:
        bounds = f"{'>' if above else '>='} {minimum:g}" + ("" if maximum == math.inf else f" and <= {maximum:g}")
        try:
            if isinstance(given, bool):
                raise ValueError
            value = float(given)
        except (TypeError, ValueError):
            raise ValueError(f"a number {bounds}") from None
        if not math.isfinite(value) or value < minimum or value > maximum or (above and value == minimum):
            raise ValueError(f"a number {bounds}")
        return value

    return parse


def rewind_point(given: Any) -> int | float:
    """An iteration (int >= 0) or a share of the iterations (float in (0, 1))."""
    expected = "an iteration (a whole number >= 0) or a share of the iterations between 0 and 1"
    try:
        if isinstance(given, bool):
            raise ValueError
        value = float(given)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if 0 < value < 1:
        return value
    if value < 0 or not value.is_integer():
        raise ValueError(expected)
    return int(value)


def text(given: Any) -> str:
    """Any text but the empty one."""
    if not str(given):
        raise ValueError("a text that is not empty")
    return str(given)


def optimizer_name(given: Any) -> str:
    """Name of a ``torch.optim`` class, in lower case."""
    return optimizer_class(str(given)).__name__.lower()


FLAGS: tuple[Flag, ...] = (
    Flag("data", "root folder of the data sets", text, ("-p",)),
    Flag("batch_size", "training images per step", integer(1)),
    Flag("optim", "optimizer, a class of torch.optim", optimizer_name, ("-o",)),
    Flag("learn_rate", "learning rate", number(0, above=True), ("-lr",)),
    Flag("iter", "training iterations of the dense network, exactly", integer(1), ("-i",)),
    Flag("rounds", "pruned levels after the dense one", integer(0), ("-r",)),
    Flag(
        "step",
        "iterations between evaluations of validation and test set; -1: once per epoch; the last iteration always is",
        integer(1, also=(-1,)),
        ("-es",),
    ),
    Flag(
        "rewind",
        "iteration of the dense network whose weights the pruned levels start from, or its share in (0, 1) of --iter",
        rewind_point,
        ("-rw",),
    ),
    Flag(
        "prune_rate",
        "share of a layer's remaining weights pruned per level, 0 to 0.99; half of it in the output layer",
        number(0, 0.99),
        ("-pr",),
    ),
    Flag("save", "folder for the runs; each gets a folder of its own in it", text, ("-s",)),
    Flag("seed", "seed of everything random; drawn and recorded if not given", integer(0), ("-rs",)),
    Flag("init_seed", "seed of the initial weights, instead of --seed", integer(0)),
    Flag("order_seed", "seed of the order of the training data, instead of --seed", integer(0)),
    Flag("threads", "CPU threads; default 1 for lenet, all for other networks", integer(1)),
    Flag("checkpoint_seconds", "least time between two checkpoints, in seconds", number(0)),
    Flag("gpu", "train on the CUDA device"),
)

BY_NAME = {flag.name: flag for flag in FLAGS}
