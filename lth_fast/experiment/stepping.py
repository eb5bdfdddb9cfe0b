"""What is stepped: a level's network and optimizer on the device; and by what, which is tried out on copies of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast._survivors import keeps_everything
from lth_fast.data import ResidentLoader
from lth_fast.experiment.copies import copy_with
from lth_fast.experiment.experiment import Experiment
from lth_fast.nn import set_masks
from lth_fast.prune.layers import prunable_names
from lth_fast.train import (
    Batches,
    EagerStepper,
    GraphStepper,
    NativeStepper,
    ParallelStepper,
    ReplicateStepper,
    ResidentBatches,
    Stepper,
    StepperChoice,
    choose_stepper,
)
from lth_fast.train.choice import device_refusal, graph_refusal, native_refusal, replay_refusal
from lth_fast.train.graph_stepper import capture
from lth_fast.train.native_refusal import native_refusal as native_refusal_by_looks
from lth_fast.train.parallel_stepper import room_for_replicates
from lth_fast.train.stacking import criterion_refusal, optimizer_refusal, stacking_refusal


def whole_masks(model: nn.Module, bias: bool = False) -> dict[str, Tensor]:
    """The masks of the dense network: of everything that can be pruned, ``bias`` says of biases too, and nothing is.

    Raises:
        ValueError: Something computes a weight that can be pruned.
    """
    # Under every name: of a shared weight, the one that is pruned is the last.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = prunable_names(model, bias)
    computed = [name for name in names if name not in parameters]
    if computed:
        raise ValueError(
            "model: expected parameters as the weights of its Linear and Conv2d layers, got some that are computed, by "
            f"a parametrization or pruning for instance: {', '.join(computed)}"
        )
    return {name: torch.ones_like(parameters[name], dtype=torch.bool, device="cpu") for name in names}


def trainee(
    experiment: Experiment, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[nn.Module, Optimizer]:
    """A copy of the network on the training device, with ``weights`` and ``masks``, and a fresh optimizer over it."""
    # Plain while it is filled and its optimizer made: a mask on a bias changes the parameter's name.
    model = to_device(copy_with(experiment.model, weights), experiment.device)
    optimizer = experiment.optimizer.build(model)
    set_masks(model, {name: mask for name, mask in masks.items() if not keeps_everything(mask)})
    return model, optimizer


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move ``model``; on CUDA four-dimensional weights become channels-last, which cuDNN's convolutions are fastest on.

    The first convolution hands the order on, so the images need not have it.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model


def choose(experiment: Experiment) -> StepperChoice:
    """The fastest stepper that can train ``experiment``, and why faster ones cannot."""
    several = experiment.replicates > 1
    trial = partial(_trial, experiment)
    native_steps = cache(partial(native_refusal, experiment.device, experiment.model, trial))
    candidates: dict[str, Callable[[], str | None]] = {}
    if several:
        candidates[ReplicateStepper.name] = lambda: _at_once_refusal(experiment)
    candidates[GraphStepper.name] = lambda: graph_refusal(experiment.device, trial)
    if several:
        candidates[ParallelStepper.name] = lambda: native_steps() or _room_refusal()
    candidates[NativeStepper.name] = native_steps
    return choose_stepper(candidates)


def _room_refusal() -> str | None:
    room = room_for_replicates()
    return None if room > 1 else f"there are not cores for two replicates of {torch.get_num_threads()} threads"


def _at_once_refusal(experiment: Experiment) -> str | None:
    return (
        device_refusal(experiment.device)
        or stacked_refusal(experiment)
        or replay_refusal(
            lambda steps: _trial(experiment, EagerStepper).advance(steps),
            lambda steps: replicates_at_once([experiment, experiment.of_replicate(1)]).advance(steps)[:, 0],
            experiment.device,
        )
    )


def stacked_refusal(experiment: Experiment) -> str | None:
    """Why the replicates of ``experiment`` cannot be trained at once on any device, or ``None``."""
    loaders = [loader for loader in experiment.loaders if loader is not None]
    if not all(isinstance(loader, ResidentLoader) for loader in loaders):
        return "the data does not all lie on the device"
    if any(loader.shuffle or loader.augment for loader in loaders[1:]):
        return "validation or test data come in a random order"
    if experiment.precision == "bf16":
        return "the precision is bf16"
    if experiment.prune_bias:
        return "biases are pruned"
    if experiment.keep_optimizer:
        return "the optimizer's state goes on from level to level"
    inputs, _ = experiment.loaders.train.gather(torch.zeros(2, dtype=torch.int64, device=experiment.device), None)
    return (
        optimizer_refusal(experiment.optimizer.kind)
        or criterion_refusal(experiment.criterion)
        or stacking_refusal(experiment.model, inputs)
    )


def replicates_at_once(experiments: Sequence[Experiment]) -> ReplicateStepper:
    """A stepper at the start of the dense networks of ``experiments``, under masks as of a trial."""
    networks = [trainee(own, own.model.state_dict(), _trial_masks(own))[0] for own in experiments]
    return replicate_stepper(experiments, networks, [own.batches(0) for own in experiments], 0, 0)


def replicate_stepper(
    experiments: Sequence[Experiment],
    networks: Sequence[nn.Module],
    batches: Sequence[Batches],
    level: int,
    iteration: int,
) -> ReplicateStepper:
    """What trains ``networks``, one of each replicate in ``experiments``, from ``iteration`` of ``level`` on."""
    first = experiments[0]
    return ReplicateStepper(
        networks,
        first.optimizer.build,
        [own for own in batches if isinstance(own, ResidentBatches)],
        iteration,
        schedule=first.schedule_of(level),
        precision=first.precision,
        record=capture if first.device.type == "cuda" else None,
    )


def _trial(experiment: Experiment, kind: type[EagerStepper] | type[GraphStepper]) -> Stepper:
    model, optimizer = trainee(experiment, experiment.model.state_dict(), _trial_masks(experiment))
    return stepper_of(kind, experiment, model, optimizer, experiment.batches(0))


# Of one network; whatever else is chosen trains several at once.
_BY_NAME = {kind.name: kind for kind in (EagerStepper, GraphStepper, NativeStepper)}
_BY_NAME[ParallelStepper.name] = NativeStepper


def stepper_class(name: str) -> type[EagerStepper] | type[GraphStepper]:
    """The stepper called ``name``, eager steps where it is none of a single network."""
    return _BY_NAME.get(name, EagerStepper)


def stepper_of(
    kind: type[EagerStepper] | type[GraphStepper],
    experiment: Experiment,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    level: int = 0,
    iteration: int = 0,
) -> Stepper:
    """A stepper of one network of ``experiment``, from ``iteration`` of ``level`` on.

    Eager steps where native ones are wanted that this network cannot take: its biases may have got masks since.
    """
    make = partial(
        kind,
        model,
        optimizer,
        experiment.criterion,
        batches,
        iteration,
        schedule=experiment.schedule_of(level),
        precision=experiment.precision,
    )
    if kind is NativeStepper:
        eager = EagerStepper(*make.args, **make.keywords)
        if native_refusal_by_looks(eager) is not None:
            return eager
    return make()


def _trial_masks(experiment: Experiment) -> dict[str, Tensor]:
    """Masks that prune a single weight of every layer: layers under a mask are others than plain ones."""
    masks = whole_masks(experiment.model, experiment.prune_bias)
    for mask in masks.values():
        mask.view(-1)[:1] = False
    return masks
