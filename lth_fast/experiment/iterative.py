"""``iterative_pruning``: the lottery loop for a model, data and pruning function of your own."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lth_fast._survivors import keeps_everything
from lth_fast.experiment.branch import source_of
from lth_fast.experiment.build import training_device
from lth_fast.experiment.config import rewind_iteration
from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.experiment.flags import BY_NAME
from lth_fast.experiment.level import stored
from lth_fast.experiment.progress import monitor_for
from lth_fast.experiment.session import new_run, run_in
from lth_fast.experiment.stepping import whole_masks
from lth_fast.experiment.ticket import NOT_COMPARED, check_fit, complete, located
from lth_fast.nn import load_dense_state, masks, set_masks
from lth_fast.record import Run, open_run
from lth_fast.train import OptimizerRecipe, Seeds, own_random_state
from lth_fast.train.schedule import StepSchedule


@dataclass
class LevelResult:
    """Results of one level.

    Attributes:
        replicate: Number of the repetition.
        level: 0 for the dense network.
        density: Share of the prunable weights kept, 0 to 1.
        early_stop_iteration: Iteration of minimum validation loss; ``None`` without a validation set.
        early_stop_accuracy: Test accuracy at that iteration, 0 to 1.
        test_accuracy, test_loss: After the last iteration.
        seconds: All of the level.
        train_seconds: Optimizer steps alone.
        error_barrier, distance: Of a second copy (``branch="reorder"``), from the first one to it; see
            :func:`lth_fast.experiment.line.line_between`, whose other results the level's summary holds.
    """

    replicate: int
    level: int
    density: float
    early_stop_iteration: int | None
    early_stop_accuracy: float | None
    test_accuracy: float | None
    test_loss: float | None
    seconds: float
    train_seconds: float
    error_barrier: float | None = None
    distance: float | None = None

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> LevelResult:
        """The results that the ``summary`` of a level holds, among others."""
        return cls(**{field.name: summary[field.name] for field in dataclasses.fields(cls) if field.name in summary})


@dataclass(frozen=True)
class Result:
    """What :func:`iterative_pruning` found.

    Attributes:
        model: The last level's network at the end of its training, with its masks; of replicate 0.
        path: Folder of the records; ``lth_fast.load_run(path)`` reads them.
        levels: One entry per level, by replicate.
    """

    model: nn.Module
    path: Path
    levels: list[LevelResult]


def iterative_pruning(
    model: nn.Module,
    data: Any,
    iterations: int,
    rounds: int,
    prune_net: Callable[[nn.Module], nn.Module | None],
    *,
    replicates: int = 1,
    initialize: Callable[[nn.Module], object] | None = None,
    validation: Any = None,
    test: Any = None,
    optim: Optimizer | str | None = None,
    learn_rate: float | None = None,
    criterion: Callable[..., Tensor] | None = None,
    step: int = 100,
    rewind: int | float = 0,
    retrain: str = "weights",
    seed: int | None = None,
    init_seed: int | None = None,
    order_seed: int | None = None,
    branch: str = "ticket",
    ticket: Result | str | Path | None = None,
    save: str | Path = "./experiments/",
    recover: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = 10.0,
    keep: Sequence[int] = (),
    keep_optimizer: bool = False,
    milestones: Sequence[int] = (),
    warmup: int = 0,
    precision: str = "float32",
    plan: str = "auto",
    gpu: bool = False,
    quiet: bool = False,
) -> Result:
    """Search a lottery ticket: train, prune, rewind, repeat, ``rounds`` times.

    Args:
        model: Any module without masks, at its initial weights. It is copied, not changed.
        data: The named tuple of ``lth_fast.data.load_…`` or any tuple (train, validation, test), or your own training
            loader: any iterable of (inputs, labels) with a length, a ``DataLoader`` for instance.
        iterations: Optimizer steps of the dense network, exactly.
        rounds: Pruned levels after the dense one.
        prune_net: Prunes the model it is given further, in place or as its result, with the functions of
            ``lth_fast.prune`` or of ``torch.nn.utils.prune``. Its masks are taken over. It should depend on that model
            alone, and on torch's global generator, which is seeded: going on with a run may call it once more.
        replicates: Repetitions, each with its own initial weights, order of the data and random masks. Replicate 0 has
            the model's weights.
        initialize: Draws new weights into the model it is given, from torch's global generator, which is seeded: for
            the other replicates and for ``branch="reinit"``; default ``model._initialize_weights``, which the networks
            of ``lth_fast.models`` have.
        validation: Validation loader, if ``data`` is a training loader.
        test: Test loader, likewise.
        optim: Optimizer over the model's parameters whose step needs no closure, or the name of a ``torch.optim``
            class; default ``model.optim``. Each level starts with a fresh one of its class, groups and settings.
        learn_rate: Learning rate, with a name in ``optim``.
        criterion: Mean loss of (outputs, labels), a tensor of one number; default ``model.criterion``.
        step: Iterations between evaluations; -1: once per epoch. The last iteration is always evaluated.
        rewind: Iteration whose weights the pruned levels start from, or its share in (0, 1) of ``iterations``.
        retrain: How they are trained from there to the last iteration (Renda, Frankle & Carbin 2020, 2003.02389):
            ``weights`` rewinds weights and schedule. ``learn_rate`` rewinds the schedule alone: the weights are those
            at the end of the level before. ``finetune`` rewinds nothing: all steps have the rate of the last one.
        seed: Seed of everything random; ``None`` draws one and records it, or in a control arm takes the ticket run's.
        init_seed: Seed of the weights that ``initialize`` draws; recorded for your own use where it draws none.
        order_seed: Seed of the data order alone.
        branch: ``ticket``: the search. Or a control for a finished one: ``reinit`` (its masks, new weights at every
            level, trained from the first step on), ``random_mask`` (its densities layer by layer, random places, its
            weights) or ``reorder`` (its masks and weights, another order of the data; error barrier and distance
            between the ends of both are among the results). ``reorder:reinit`` and ``reorder:random_mask`` do so with a
            finished control. ``prune_net`` is not called then.
        ticket: The finished run that a control is compared with, its result or its folder. The other arguments must
            be the ones it had, the model's weights too; ``keep``, ``plan``, ``gpu``, ``threads`` and
            ``checkpoint_seconds`` may differ. Replicate r takes the masks of replicate r there; there may be fewer.
        save: Folder that gets the run's folder.
        recover: Folder of a run that was stopped: go on with it. The other arguments must be the ones it had;
            ``seed``, ``plan`` and ``ticket`` can be left out.
        force: Recover also where another torch, CPU, thread count, network or criterion may change the bits.
        threads: CPU threads; ``None`` leaves torch's setting.
        checkpoint_seconds: Least time between checkpoints.
        keep: Iterations of the dense network whose weights are kept (``lth_fast.load_run(path).kept(iteration)``).
        keep_optimizer: Go on with the optimizer's state from level to level instead of a fresh one.
        milestones: Iterations after which the learning rate drops to a tenth, in ascending order.
        warmup: Iterations N over which the learning rate rises linearly, from 1/N of it in the first.
        precision: ``float32``, ``tf32`` (GPU) or ``bf16`` (autocast).
        plan: Form of the layers: ``auto`` (the fastest here, measured once per machine), ``masked``, ``sparse``, or
            the folder of a run, whose plan is replayed. A sparse layer's Parameter is ``values``, its ``weight`` is
            computed at every access. Optimizers that do not treat every weight by itself see masked layers only.
        gpu: Train on the CUDA device.
        quiet: Print nothing. Otherwise the folder of the run and its progress go to stderr.

    Returns:
        The last network of replicate 0, the folder of the records and the results of every level of every replicate.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it. Exceptions of the training reach the caller.
    """
    given = {
        "rounds": rounds,
        "replicates": replicates,
        "step": step,
        "rewind": rewind,
        "checkpoint_seconds": checkpoint_seconds,
        "keep": keep,
        "keep_optimizer": keep_optimizer,
        "milestones": milestones,
        "warmup": warmup,
        "retrain": retrain,
        "precision": precision,
        "plan": plan,
        "branch": branch,
    }
    may_be_none = {"seed": seed, "init_seed": init_seed, "order_seed": order_seed, "threads": threads}
    options: dict[str, Any] = {
        "iter": BY_NAME["iter"].read(iterations, "iterations"),
        **{name: BY_NAME[name].read(value, name) for name, value in given.items()},
        **{name: None if value is None else BY_NAME[name].read(value, name) for name, value in may_be_none.items()},
    }
    gpu = BY_NAME["gpu"].read(gpu, "gpu")
    control = options["branch"] != "ticket"
    finished = f"the result or the folder of a finished {source_of(options['branch'])} run"
    ticket_run = None if ticket is None else _opened(ticket, finished)
    options["ticket"] = None if ticket_run is None else str(ticket_run.path)
    if control != (ticket is not None) and not (control and recover is not None):
        expected = finished if control else "None"
        raise ValueError(f"ticket: expected {expected} with branch={options['branch']!r}, got {options['ticket']}")
    if options["branch"] not in ("ticket", "reorder") and options["retrain"] != "weights":
        raise ValueError(f"retrain: expected 'weights' with branch={options['branch']!r}, got {options['retrain']!r}")
    options["rewind"] = rewind_iteration(options["rewind"], options["iter"], "rewind")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if masks(model):
        raise ValueError(
            f"model: expected one without masks, got masks of {', '.join(masks(model))}; the search counts from the "
            "dense network, which lth_fast.nn.restore(model) gives"
        )
    if any(value.is_meta or is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        raise ValueError("model: expected weights with values, got some on the meta device or of lazy layers")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected parameters to train, got none that requires a gradient")
    whole_masks(model)  # refuses weights that cannot be masked, before anything is copied or created
    if not callable(prune_net):
        raise TypeError(f"prune_net: expected a function of the model, got {type(prune_net).__name__}")
    if options["precision"] == "tf32" and not gpu:
        raise ValueError("precision: expected float32 or bf16 without gpu=True, got 'tf32'")
    if options["keep"] and options["keep"][-1] > options["iter"]:
        raise ValueError(f"keep: expected iterations up to {options['iter']}, got {options['keep'][-1]}")
    draws = options["replicates"] > 1 or options["branch"] == "reinit"
    redraw = _redraw(model, initialize) if draws else None
    for name, folder in ({"save": save} if recover is None else {"save": save, "recover": recover}).items():
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"{name}: expected the path of a folder, got {type(folder).__name__}")
    run = None if recover is None else open_run(recover)
    if run is not None:
        options = _recovered(run, options)
        trains = not complete(run, options["replicates"], options["rounds"])
        ticket_run = open_run(options["ticket"]) if control and trains else None
    elif ticket_run is not None:
        options["seed"] = _seed_of_ticket(ticket_run, options)
    elif options["seed"] is None:
        options["seed"] = secrets.randbits(31)
    device = training_device(gpu, called="gpu")
    loaders = _loaders(data, validation, test, device)
    plain = copy.deepcopy(model)
    scheduled = bool(options["warmup"] or options["milestones"])
    experiment = Experiment(
        model=plain,
        loaders=loaders,
        criterion=_criterion(model, criterion, device),
        optimizer=_recipe(model, optim, learn_rate, device),
        prune_net=prune_net,
        iterations=options["iter"],
        rounds=options["rounds"],
        rewind=options["rewind"],
        retrain=options["retrain"],
        evaluate_every=options["step"],
        seeds=Seeds(options["seed"], options["init_seed"], options["order_seed"]),
        replicates=options["replicates"],
        redraw=redraw,
        device=device,
        checkpoint_seconds=options["checkpoint_seconds"],
        schedule=StepSchedule(options["warmup"], options["milestones"]) if scheduled else None,
        precision=options["precision"],
        keep=options["keep"],
        keep_optimizer=options["keep_optimizer"],
        branch=options["branch"],
        ticket=ticket_run,
        plan=options["plan"],
    )
    experiment.batches(0)  # refuses data that cannot be trained on, before anything is created
    if run is None:
        if control:
            check_fit(experiment)
        run = new_run(save, type(model).__name__, _data_name(loaders.train), options["branch"], called="save")
    configuration = {"made_by": "lth_fast.iterative_pruning", **options}
    summaries = run_in(
        run,
        experiment,
        configuration,
        monitor_for(quiet, options["rounds"] + 1),
        threads=options["threads"],
        recovering=recover is not None,
        force=force,
    )
    return Result(_final_model(plain, run, options["rounds"], device), run.path, [LevelResult.of(s) for s in summaries])


# Settings that a run of an earlier version has no record of.
_ABSENT = {"replicates": 1, "retrain": "weights", "branch": "ticket", "ticket": None}
# The arguments that records call by the names of flags.
_ARGUMENTS = {"iter": "iterations"}
# What says nothing about a run that goes on; the folder of a plan may have moved since.
_LEFT_OUT = {"seed": None, "plan": "auto", "ticket": None}


def _recovered(run: Run, options: dict[str, Any]) -> dict[str, Any]:
    recorded = _recorded(run, "recover", f"go on with it there: --recover {run.path}")
    if recorded["branch"] != "ticket":
        recorded["ticket"] = str(located(str(recorded["ticket"]), run))
    wrong = [
        f"{_ARGUMENTS.get(name, name)} is {recorded.get(name)} in the run, {value} was given"
        for name, value in options.items()
        if recorded.get(name) != value and not (name in _LEFT_OUT and value == _LEFT_OUT[name])
    ]
    if wrong:
        raise ValueError(f"recover: the run's own settings go on: {'; '.join(wrong)}")
    return recorded


def _seed_of_ticket(run: Run, options: dict[str, Any]) -> int:
    """The seed of the ticket run, whose settings those of the control arm must be."""
    recorded = _recorded(run, "ticket", "its controls are too: --branch")
    source = source_of(options["branch"])
    if recorded["branch"] != source:
        got = "a ticket run" if recorded["branch"] == "ticket" else f"a control arm, {recorded['branch']}"
        raise ValueError(f"ticket: {run.path}: expected a {source} run, got {got}")
    wrong = [
        f"{_ARGUMENTS.get(name, name)} is {recorded.get(name)} there, {value} was given"
        for name, value in options.items()
        if recorded.get(name) != value and name not in NOT_COMPARED and (name, value) != ("seed", None)
    ]
    if wrong:
        raise ValueError(f"ticket: {run.path}: expected a run of the same settings; {'; '.join(wrong)}")
    return recorded["seed"]


def _recorded(run: Run, argument: str, instead: str) -> dict[str, Any]:
    """The settings that this function recorded of ``run``, which was given as ``argument``."""
    recorded = run.manifest().get("configuration")
    if recorded is None:
        raise ValueError(f"{argument}: {run.path}: this run was stopped before it was set up; start it anew")
    if "made_by" not in recorded:
        raise ValueError(f"{argument}: {run.path} was made by the command line; {instead}")
    # The one that need not be given.
    seed = BY_NAME["seed"].read(recorded.get("seed"), f"{argument}: {run.manifest_file}: configuration: seed")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
    del plain["made_by"]
    return {**_ABSENT, **plain, "seed": seed}


def _opened(ticket: Result | str | Path, expected: str) -> Run:
    if not isinstance(ticket, (Result, str, Path)):
        raise TypeError(f"ticket: expected {expected}, got {type(ticket).__name__}")
    path = ticket.path if isinstance(ticket, Result) else ticket
    try:
        return open_run(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"ticket: expected {expected}, got {str(path)!r} ({error})") from error


def _loaders(data: Any, validation: Any, test: Any, device: torch.device) -> Loaders:
    if isinstance(data, tuple) and len(data) == 3 and not any(map(_is_batch, data)):
        data = Loaders(*data)
    if hasattr(data, "train") and hasattr(data, "validation") and hasattr(data, "test"):
        if validation is not None or test is not None:
            raise ValueError("validation and test: expected inside data or beside a training loader, got both")
        data, validation, test = data.train, data.validation, data.test
    sized = hasattr(data, "__iter__") and hasattr(data, "__len__") and not isinstance(data, (str, bytes))
    if not sized or (isinstance(data, tuple) and not all(map(_is_batch, data))):
        raise TypeError(
            "data: expected (train, validation, test) as lth_fast.data.load_… returns it, or a training loader, "
            f"got {type(data).__name__}"
        )
    for name, loader in (("validation", validation), ("test", test)):
        if loader is not None and (not hasattr(loader, "__iter__") or hasattr(loader, "__next__")):
            raise TypeError(
                f"{name}: expected a loader of (inputs, labels), iterable again and again, got {type(loader).__name__}"
            )
        if operator.length_hint(loader, 1) == 0:  # some have no length
            raise ValueError(f"{name}: expected a loader with batches or None, got one without")
    resident = (loader.to(device) if hasattr(loader, "to") else loader for loader in (data, validation, test))
    return Loaders(*resident)


def _needs_closure(kind: type[Optimizer]) -> bool:
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _is_batch(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Tensor)


def _criterion(
    model: nn.Module, criterion: Callable[..., Tensor] | None, device: torch.device
) -> Callable[..., Tensor]:
    if isinstance(model, nn.Sequential) and "criterion" in dict(model.named_children()):
        raise ValueError(
            "criterion: expected as an argument for an nn.Sequential, got it as model.criterion, which makes it the "
            "last layer; take it off with del model.criterion"
        )
    chosen = getattr(model, "criterion", None) if criterion is None else criterion
    if not callable(chosen) or isinstance(chosen, type):
        got = f"the class {chosen.__name__}, which makes one" if isinstance(chosen, type) else "none"
        raise ValueError(f"criterion: expected a loss function here or as model.criterion, got {got}")
    # Class weights and the like: on the training device, the caller's where they were.
    return copy.deepcopy(chosen).to(device) if isinstance(chosen, nn.Module) else chosen


def _recipe(
    model: nn.Module, optim: Optimizer | str | None, learn_rate: float | None, device: torch.device
) -> OptimizerRecipe:
    chosen = getattr(model, "optim", None) if optim is None else optim
    if isinstance(chosen, Optimizer):
        if learn_rate is not None:
            raise ValueError("learn_rate: expected with a name in optim, got it with an optimizer, which has its own")
        if _needs_closure(type(chosen)):
            raise ValueError(f"optim: expected an optimizer whose step needs no closure, got {type(chosen).__name__}")
        return OptimizerRecipe.from_optimizer(chosen, model)
    if isinstance(chosen, str):
        rate = None if learn_rate is None else BY_NAME["learn_rate"].read(learn_rate, "learn_rate")
        return OptimizerRecipe.named(BY_NAME["optim"].read(chosen, "optim"), rate, device)
    raise ValueError(
        f"optim: expected a torch optimizer or the name of one, here or as model.optim, got {type(chosen).__name__}"
    )


def _redraw(model: nn.Module, initialize: Callable[[nn.Module], object] | None) -> Callable[[int], dict[str, Tensor]]:
    """What draws new weights of ``model`` from a seed."""
    draw = getattr(type(model), "_initialize_weights", None) if initialize is None else initialize
    if draw is None:
        raise ValueError(
            "initialize: expected a function that draws new weights into a model, got none "
            f"({type(model).__name__} has no _initialize_weights)"
        )
    if not callable(draw):
        raise TypeError(f"initialize: expected a function of the model, got {type(draw).__name__}")
    plain = copy.deepcopy(model)

    def redraw(seed: int) -> dict[str, Tensor]:
        drawn = copy.deepcopy(plain)
        with own_random_state(torch.device("cpu")):
            torch.manual_seed(seed)
            draw(drawn)
        return drawn.state_dict()

    return redraw


def _data_name(train: Any) -> str:
    named = getattr(train, "name", None) or type(getattr(train, "dataset", train)).__name__
    return str(named)


def _final_model(model: nn.Module, run: Run, last: int, device: torch.device) -> nn.Module:
    level = run.replicate(0).level(last)
    model = model.to(device)
    load_dense_state(model, stored(level.weights("end"), level))
    masks = stored(level.masks(), level)
    return set_masks(model, {name: mask for name, mask in masks.items() if not keeps_everything(mask)})
