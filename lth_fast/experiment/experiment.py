"""Everything a replicate of an experiment is made of, independent of where it came from (command line or Python)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lth_fast.experiment.branch import reorders
from lth_fast.record import Replicate, Run
from lth_fast.train import Batches, EagerStepper, LoaderBatches, OptimizerRecipe, ResidentBatches, Seeds
from lth_fast.train.stepper import Schedule

RETRAINS = ("weights", "learn_rate", "finetune")
"""How a pruned level is trained, by what is rewound (Renda, Frankle & Carbin 2020, 2003.02389): weights and learning
rate, the learning rate alone, nothing."""


class Loaders(NamedTuple):
    """Training, validation and test data; the latter two may be missing."""

    train: Any
    validation: Any = None
    test: Any = None


@dataclass(frozen=True)
class Experiment:
    """A ticket search: train, prune, rewind, repeat.

    Attributes:
        model: Plain module at its initial weights, on the CPU or the training device. Copied, never changed.
        loaders: The data.
        criterion: Mean loss of a batch from (outputs, labels).
        optimizer: Recipe; every level starts with a fresh one.
        prune_net: Prunes a model further; see :class:`~lth_fast.experiment.prune_step.PruneStep`.
        iterations: Length T of the dense training, in optimizer steps.
        rounds: Number of pruned levels after the dense one.
        rewind: Iteration k whose weights the pruned levels start from; they train steps k + 1 to T.
        retrain: One of :data:`RETRAINS`. ``learn_rate``: the pruned levels start from the weights at the end of the
            level before instead; ``finetune``: so they do, and keep the learning rate of the last step T.
        evaluate_every: Iterations between evaluations, or -1: once per epoch. The last iteration is always evaluated.
        seeds: Streams of randomness.
        replicate: Number of this repetition.
        replicates: Repetitions in all.
        device: Where training happens.
        checkpoint_seconds: Least time between checkpoints.
        schedule: Factor on the learning rate by iteration.
        precision: Arithmetic, one of :data:`lth_fast.train.precision.PRECISIONS`.
        keep: Iterations of the dense network whose weights are kept.
        keep_optimizer: Whether a level goes on with the optimizer's state at the end of the previous one.
        prune_bias: Whether biases count among what is pruned.
        branch: ``ticket``, or a control arm (:mod:`lth_fast.experiment.branch`), which needs the next two.
        ticket: The finished run that a control arm takes its masks from, a ticket search unless ``branch`` names
            another arm; replicate r takes those of replicate r there.
        plan: Which form the layers get where the run's manifest does not say it: a rule of
            :mod:`lth_fast.experiment.forms`.
        redraw: New initial weights, a state dict, from a seed; needed for several replicates and by ``reinit``.
        prune_net_of: Makes ``prune_net`` for a replicate from its model at its initial weights, with which scores may
            compare; ``None``: ``prune_net`` is every replicate's.
        stepper: Name of the stepper that trains; see :func:`lth_fast.train.choose_stepper`.
    """

    model: nn.Module
    loaders: Loaders
    criterion: Callable[..., Tensor]
    optimizer: OptimizerRecipe
    prune_net: Callable[[nn.Module], nn.Module | None]
    iterations: int
    rounds: int
    rewind: int = 0
    retrain: str = "weights"
    evaluate_every: int = 100
    seeds: Seeds = Seeds(0)  # noqa: RUF009  (immutable)
    replicate: int = 0
    replicates: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    checkpoint_seconds: float = 10.0
    schedule: Schedule | None = None
    precision: str = "float32"
    keep: tuple[int, ...] = ()
    keep_optimizer: bool = False
    prune_bias: bool = False
    branch: str = "ticket"
    ticket: Run | None = None
    plan: str = "auto"
    redraw: Callable[[int], Mapping[str, Tensor]] | None = None
    prune_net_of: Callable[[nn.Module], Callable[[nn.Module], nn.Module | None]] | None = None
    stepper: str = EagerStepper.name

    def of_replicate(self, number: int) -> Experiment:
        """The experiment as replicate ``number`` runs it; given as replicate 0, the others draw their own weights.

        What a replicate is depends on its number, the seeds and the settings, not on how many others there are.
        """
        if number == self.replicate:
            return self
        assert self.redraw is not None
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.redraw(self.seeds.stream("init", number)))
        prune_net = self.prune_net if self.prune_net_of is None else self.prune_net_of(model)
        return dataclasses.replace(self, model=model, prune_net=prune_net, replicate=number)

    def schedule_of(self, level: int) -> Schedule | None:
        """Factor on the learning rate by iteration at ``level``."""
        schedule = self.schedule
        if schedule is None or level == 0 or self.retrain != "finetune":
            return schedule
        last = schedule(self.iterations - 1)
        return lambda iteration: last

    @property
    def copied_replicate(self) -> Replicate | None:
        """The replicate that this one is a second copy of; ``None`` where the branch is none."""
        return self.ticket.replicate(self.replicate) if self.ticket is not None and reorders(self.branch) else None

    @property
    def training_seeds(self) -> Seeds:
        """What the order of the data, dropout and augmentation are drawn from."""
        return Seeds(self.seeds.stream("reorder")) if reorders(self.branch) else self.seeds

    def batches(self, level: int) -> Batches:
        """The training batches of ``level``, in the order its seed gives."""
        train, seeds = self.loaders.train, self.training_seeds

        def order(epoch: int) -> int:
            return seeds.stream("order", self.replicate, level, epoch)

        def noise(epoch: int) -> int:
            return seeds.stream("noise", self.replicate, level, epoch + 1)

        if hasattr(train, "order") and hasattr(train, "batch"):
            return ResidentBatches(train, order, noise)
        return LoaderBatches(train, order, self.device)

    def evaluation_interval(self, per_epoch: int) -> int:
        """Iterations from one evaluation to the next."""
        return per_epoch if self.evaluate_every == -1 else self.evaluate_every
