"""Every setting of a run: its flag, what values it takes, what it means. The one place where they are listed."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lth_fast._names import match_name
from lth_fast.experiment.branch import BRANCHES
from lth_fast.experiment.experiment import RETRAINS
from lth_fast.experiment.forms import plan_source
from lth_fast.experiment.presets import presets
from lth_fast.experiment.pruning import COUNTS, ROLES
from lth_fast.models.init import SCHEMES
from lth_fast.prune import DISTRIBUTIONS, SCOPES, SCORES
from lth_fast.train.optimizers import optimizer_class
from lth_fast.train.precision import PRECISIONS

Parse = Callable[[Any], Any]

_TRUTHS = (bool, np.bool_)


@dataclass(frozen=True)
class Flag:
    """A setting.

    Attributes:
        name: As in ``--name`` and as a keyword of ``iterative_pruning``.
        help: One line.
        parse: From a string or a Python value to the value; ValueError says what is expected. ``None``: a switch.
        short: The reference project's short forms.
        negatable: Whether a switch has a ``--no_...`` form, because a preset may turn it on.
        stands_for: Another setting and its value, which is all that this switch sets.
    """

    name: str
    help: str
    parse: Parse | None = None
    short: tuple[str, ...] = ()
    negatable: bool = False
    stands_for: tuple[str, Any] | None = None

    def read(self, given: Any, called: str | None = None) -> Any:
        """The value that ``given`` stands for.

        Args:
            given: A text or a Python value.
            called: What the message calls the setting, if not ``--name``.

        Raises:
            ValueError: It stands for none; the message names the flag, what is expected and what was given.
        """
        try:
            return (self.parse or switch)(given)
        except ValueError as error:
            raise ValueError(f"{called or f'--{self.name}'}: expected {error}, got {given!r}") from None


def switch(given: Any) -> bool:
    """True or False; 0 and 1 will do, a text that says ``false`` would not."""
    if not isinstance(given, (*_TRUTHS, int)) or given not in (0, 1):
        raise ValueError("True or False")
    return bool(given)


def integer(minimum: int, maximum: float = math.inf, also: tuple[int, ...] = ()) -> Parse:
    """Whole numbers from ``minimum`` to ``maximum``, and those of ``also``."""

    expected = f"a whole number >= {minimum}" + ("" if maximum == math.inf else f" and <= {maximum}")
    expected += "".join(f" or {value}" for value in also)

    def parse(given: Any) -> int:
        try:
            value = int(given) if isinstance(given, str) else operator.index(given)
        except (TypeError, ValueError):
            raise ValueError(expected) from None
        if isinstance(given, bool) or (not minimum <= value <= maximum and value not in also):
            raise ValueError(expected)
        return value

    return parse


def number(minimum: float, maximum: float = math.inf, *, above: bool = False) -> Parse:
    """Finite numbers from ``minimum`` (or, with ``above``, greater than it) to ``maximum``."""

    bounds = f"{'>' if above else '>='} {minimum:g}" + ("" if maximum == math.inf else f" and <= {maximum:g}")

    def parse(given: Any) -> float:
        value = _number(given)
        if not math.isfinite(value) or not minimum <= value <= maximum or (above and value == minimum):
            raise ValueError(f"a number {bounds}")
        return value

    return parse


def number_or_share(expected: str) -> Parse:
    """Whole numbers >= 0 (int) and shares in (0, 1) (float) of what ``expected`` calls them."""

    def parse(given: Any) -> int | float:
        value = _number(given)
        if 0 < value < 1:
            return value
        if value < 0 or not value.is_integer():
            raise ValueError(expected)
        return int(value)

    return parse


def _number(given: Any) -> float:
    """The number that ``given`` is or spells, NaN where it is none."""
    try:
        return math.nan if isinstance(given, _TRUTHS) else float(given)
    except (TypeError, ValueError, OverflowError):
        return math.nan


rewind_point = number_or_share("an iteration (a whole number >= 0) or a share of the iterations between 0 and 1")


def text(given: Any) -> str:
    """Any text but the empty one."""
    if not str(given):
        raise ValueError("a text that is not empty")
    return str(given)


def optimizer_name(given: Any) -> str:
    """Name of a ``torch.optim`` class, in lower case."""
    try:
        return optimizer_class(str(given)).__name__.lower()
    except ValueError as error:
        raise ValueError(f"an optimizer of torch.optim ({error})") from None


def one_of(*names: str) -> Parse:
    """One of ``names``, in any case, or an unambiguous prefix."""

    def parse(given: Any) -> str:
        try:
            return match_name(str(given), names, "choice")
        except ValueError:
            raise ValueError(f"one of {', '.join(names)}") from None

    return parse


def several_of(*names: str) -> Parse:
    """Names of ``names`` with commas between them, or ``none``; a tuple."""

    def parse(given: Any) -> tuple[str, ...]:
        try:
            parts = _parts(given)
            if not all(part in names for part in parts):
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"some of {', '.join(names)} with commas between them, or none") from None
        return tuple(name for name in names if name in parts)

    return parse


def iterations(given: Any) -> tuple[int, ...]:
    """Iterations (whole numbers >= 0) with commas between them, in ascending order, or ``none``; a tuple."""
    try:
        values = tuple(map(integer(0), _parts(given)))
        if list(values) != sorted(set(values)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("iterations in ascending order with commas between them, or none") from None
    return values


def _parts(given: Any) -> list[Any]:
    """What stands between the commas of a text, or in a sequence; nothing for ``none``."""
    parts = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
    return [] if parts == ["none"] else parts


def initialiser(given: Any) -> str:
    """A scheme of :func:`lth_fast.models.initialise`."""
    name, colon, sigma = str(given).lower().partition(":")
    try:
        if name in SCHEMES and not colon:
            return name
        if name == "normal" and number(0, above=True)(sigma):
            return f"normal:{sigma}"
    except ValueError:
        pass
    raise ValueError(f"{', '.join(SCHEMES)} or normal:SIGMA with SIGMA > 0")


def branch(given: Any) -> str:
    """One of the branches; ``random`` would be a prefix of one and the name of a flag for another."""
    name = one_of(*BRANCHES)(given)
    if name == "random_mask" and "random".startswith(str(given).lower()):
        raise ValueError(f"one of {', '.join(BRANCHES)} (--random is reinit)")
    return name


FLAGS: tuple[Flag, ...] = (
    Flag("preset", f"published settings that hold where a flag is not given: {', '.join(presets)}", one_of(*presets)),
    Flag("data", "root folder of the data sets", text, ("-p",)),
    Flag(
        "validation",
        "training images held out for validation, a number or a share in (0, 1); 0: none, and no early-stop iteration",
        number_or_share("a number of images (a whole number >= 0) or a share of the training set between 0 and 1"),
    ),
    Flag("batch_size", "training images per step", integer(1, 2**63 - 1)),
    Flag("optim", "optimizer, a class of torch.optim", optimizer_name, ("-o",)),
    Flag("learn_rate", "learning rate", number(0, above=True), ("-lr",)),
    Flag("iter", "training iterations of the dense network, exactly", integer(1), ("-i",)),
    Flag("rounds", "pruned levels after the dense one", integer(0), ("-r",)),
    Flag("replicates", "repetitions, each with its own initial weights, order of the data and masks", integer(1)),
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
        "retrain",
        "where a pruned level begins: weights: with the weights of --rewind; learn_rate: with those at the end of the "
        "level before, the learning rate and the iterations from --rewind on; finetune: the same at the last rate",
        one_of(*RETRAINS),
    ),
    Flag(
        "prune_rate",
        "share of the remaining weights pruned per level, 0 to 0.99; layer-wise, half of it in the output layer",
        number(0, 0.99),
        ("-pr",),
    ),
    Flag("fc_rate", "the same for Linear layers, instead of --prune_rate", number(0, 0.99), ("-fc",)),
    Flag("scope", "layerwise, or global: one threshold over all weights", one_of(*SCOPES)),
    Flag(
        "score",
        f"what the weights are ranked by at the end of a level, the lowest go: {', '.join(SCORES)}",
        one_of(*SCORES),
    ),
    Flag(
        "distribution",
        "layer-wise: uniform, or erk: denser the fewer weights a layer has per unit (RigL); --prune_rate is then the "
        "share pruned of all weights together",
        one_of(*DISTRIBUTIONS),
    ),
    Flag("prune_global", "the same as --scope global", stands_for=("scope", "global")),
    Flag("whole", "layers that are not pruned: output, shortcuts, both with a comma, or none", several_of(*ROLES)),
    Flag(
        "count",
        "how many weights go with --scope global: nearest: the share of those in the layers pruned, rounded; openlth: "
        "of all, layers of --whole too, rounded up, and one more",
        one_of(*COUNTS),
    ),
    Flag("prune_bias", "prune the biases of the pruned layers too (the reference project did)"),
    Flag(
        "branch",
        "ticket; or a control for the newest finished ticket run of the same settings in --save, which is run first "
        "where there is none: reinit (its masks, new weights), random_mask (its densities layer by layer, random "
        "places, its weights), reorder (its masks and weights, another order of the data; the error barrier and the "
        "distance between the ends of both); reorder:reinit and reorder:random_mask do so with these controls",
        branch,
    ),
    Flag("random", "the paper's control, the same as --branch reinit", stands_for=("branch", "reinit")),
    Flag(
        "init",
        "initial weights: glorot, kaiming, orthogonal, normal:SIGMA or openlth: kaiming with torch's biases and scales "
        "of BatchNorm in (0, 1)",
        initialiser,
    ),
    Flag("keep_optimizer", "go on with the optimizer's state from level to level (the reference project did)"),
    Flag("keep", "iterations of the dense network whose weights are kept, e.g. 0,100,500", iterations),
    Flag("dropout", "share of activations dropped in networks that have dropout, 0 to 0.99", number(0, 0.99)),
    Flag("augment", "flip and crop the training images at random", negatable=True),
    Flag("momentum", "momentum of SGD or RMSprop, 0 to 0.999", number(0, 0.999)),
    Flag("nesterov", "Nesterov momentum"),
    Flag("weight_decay", "weight decay (L2) of the optimizer", number(0)),
    Flag(
        "milestones", "iterations after which the learning rate drops to a tenth, e.g. 20000,25000, or none", iterations
    ),
    Flag("warmup", "iterations N over which the learning rate rises linearly, from 1/N of it in the first", integer(0)),
    Flag(
        "precision", "arithmetic of forward and backward: float32, tf32 (GPU) or bf16 (autocast)", one_of(*PRECISIONS)
    ),
    Flag(
        "plan",
        "form of the layers: auto (the fastest here, measured once), masked, sparse, or a run's folder, whose plan is "
        "replayed",
        plan_source,
    ),
    Flag("save", "folder for the runs; each gets a folder of its own in it", text, ("-s",)),
    Flag("seed", "seed of everything random; drawn and recorded if not given", integer(0), ("-rs",)),
    Flag("init_seed", "seed of the initial weights, instead of --seed", integer(0)),
    Flag("order_seed", "seed of the order of the training data, instead of --seed", integer(0)),
    # Every thread has a stack of its own: tens of thousands of them leave a run no memory, or end the process.
    Flag("threads", "CPU threads", integer(1, 1024)),
    Flag("checkpoint_seconds", "least time between two checkpoints, in seconds", number(0)),
    Flag("gpu", "train on the CUDA device"),
)

BY_NAME = {flag.name: flag for flag in FLAGS}
