"""Training one level to its end, from wherever its checkpoint stands; of one replicate or of several at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lth_fast._survivors import count_kept
from lth_fast.data import ResidentLoader
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.forms import take_forms
from lth_fast.experiment.line import line_between
from lth_fast.experiment.progress import Monitor
from lth_fast.experiment.stepping import replicate_stepper, stepper_class, stepper_of, trainee
from lth_fast.nn import dense_state, load_dense_state
from lth_fast.optim import dense_optimizer_state, load_dense_optimizer_state
from lth_fast.record import Level, Replicate
from lth_fast.record.run import WeightKind
from lth_fast.train import (
    Evaluation,
    ParallelStepper,
    Stepper,
    evaluate,
    loader_generators,
    own_random_state,
    seed_loader,
)
from lth_fast.train.parallel_stepper import side_by_side
from lth_fast.train.precision import forward_precision
from lth_fast.train.stacking import evaluate_stacked

# Steps are taken in chunks of about this many seconds: short for a lively progress bar and prompt checkpoints, long
# enough that the loop around them costs nothing. The size of the chunks changes no result.
CHUNK_SECONDS = 0.5

NOT_EVALUATED = Evaluation(math.nan, math.nan)

Stored = TypeVar("Stored")


def stored(value: Stored | None, level: Level) -> Stored:
    """``value``, which a complete level must have on the disk."""
    if value is None:
        raise FileNotFoundError(f"{level.path}: a file of this complete level is missing; {level.remedy}")
    return value


def train_level(experiment: Experiment, record: Replicate, level: Level, monitor: Monitor) -> None:
    """Train ``level`` and store its results; its masks are stored already.

    Level 0 starts from the initial weights and trains steps 1 to T. Every other level starts from the weights after
    step k of level 0, masked, with a fresh optimizer, and trains steps k + 1 to T of its own order; with new weights
    (branch ``reinit``) it trains all of them, and where weights are not rewound it starts from the previous level's. A
    second copy (branch ``reorder``) starts where the same level of the first one did; its level 0 from step k on, whose
    weights are all that the first one kept of its way.
    """
    training = _Training(experiment, record, level, monitor)
    _train_alone(training, training.stepper())
    _complete([training])


def train_in_parallel(
    experiments: Sequence[Experiment], records: Sequence[Replicate], number: int, monitor: Monitor
) -> None:
    """:func:`train_level` for level ``number`` of several replicates, side by side, each in a thread of its own.

    Every replicate is timed as all of them together. Nothing but the first one is told to ``monitor``.
    """
    trainings = [
        _Training(experiment, record, record.level(number), Monitor() if index else monitor)
        for index, (experiment, record) in enumerate(zip(experiments, records, strict=True))
    ]
    steppers = [training.stepper() for training in trainings]
    # A kill between their checkpoints leaves some behind.
    furthest = max(training.iteration for training in trainings)
    for training, stepper in zip(trainings, steppers, strict=True):
        _train_alone(training, stepper, until=furthest)

    def measure(loader: Any) -> list[Evaluation]:
        if type(loader) is not ResidentLoader or loader.shuffle or loader.augment:  # it may draw random numbers
            return [training.measure(loader) for training in trainings]
        criterion = experiments[0].criterion
        return side_by_side(lambda training: evaluate(training.model, criterion, loader), trainings)

    _train(trainings, ParallelStepper(steppers), measure)
    _complete(trainings)


def train_together(
    experiments: Sequence[Experiment], records: Sequence[Replicate], number: int, monitor: Monitor
) -> None:
    """Train level ``number`` of several replicates at once, from its start, and store the results of each.

    There are no checkpoints on the way, so a level that was stopped begins anew. Every replicate is timed as all of
    them together. Nothing but replicate 0 is told to ``monitor``.
    """
    trainings = [
        _Training(experiment, record, record.level(number), Monitor() if index else monitor, together=True)
        for index, (experiment, record) in enumerate(zip(experiments, records, strict=True))
    ]
    stepper = replicate_stepper(
        experiments,
        [training.model for training in trainings],
        [training.batches for training in trainings],
        number,
        trainings[0].iteration,
    )

    def measure(loader: Any) -> list[Evaluation]:
        if loader is None:
            return [NOT_EVALUATED] * len(trainings)
        return evaluate_stacked(stepper.model, len(trainings), loader)

    _train(trainings, stepper, measure)
    _complete(trainings)


def _train_alone(training: _Training, stepper: Stepper, until: int | None = None) -> None:
    _train([training], stepper, lambda loader: [training.measure(loader)], until)


def _complete(trainings: Sequence[_Training]) -> None:
    for training in trainings:
        training.store()
    lines = [training.line() for training in trainings]
    # Together, so that a run is hardly ever stopped between the first one's completion and the last one's.
    for training, line in zip(trainings, lines, strict=True):
        training.complete(line)


def _train(
    trainings: Sequence[_Training],
    stepper: Stepper,
    measure: Callable[[Any], list[Evaluation]],
    until: int | None = None,
) -> None:
    """Take all the steps that ``trainings``, which stand at the same iteration, have before them.

    Args:
        trainings: One per replicate.
        stepper: Advances all of them.
        measure: Evaluation of each on a loader, or on ``None``.
        until: The iteration to stop at; ``None``: the last one.
    """
    leader = trainings[0]
    loaders, last = leader.experiment.loaders, leader.experiment.iterations if until is None else until
    chunk = 1
    while leader.iteration < last:
        steps = min(chunk, leader.next_stop() - leader.iteration, last - leader.iteration)
        began = time.perf_counter()
        losses = stepper.advance(steps).cpu().view(steps, len(trainings))
        seconds = time.perf_counter() - began
        chunk = max(1, min(4 * chunk, int(CHUNK_SECONDS * steps / max(seconds, 1e-9))))
        for training, own in zip(trainings, losses.unbind(1), strict=True):
            training.stepped(own, seconds)
        if leader.evaluation_is_due():
            measured = zip(measure(loaders.validation), measure(loaders.test), strict=True)
            for training, (validation, test) in zip(trainings, measured, strict=True):
                training.evaluated(validation, test)
        for training in trainings:
            training.pause()


def _start(experiment: Experiment, record: Replicate, level: Level) -> tuple[dict[str, Tensor], int]:
    """The weights that ``level`` starts from, which it stores, and the iteration they stand for."""
    if experiment.copied_replicate is not None:
        copied = experiment.copied_replicate.level(level.number)
        weights = stored(copied.weights("rewind"), copied)
        level.link_weights("rewind", copied)
        summary = stored(copied.summary(), copied)
        return weights, experiment.rewind if level.number == 0 else summary["first_iteration"] - 1
    if level.number == 0:
        if experiment.rewind == 0:
            level.link_weights("rewind", record.initial_file)
        return stored(record.initial(), level), 0
    if experiment.branch == "reinit":
        assert experiment.redraw is not None
        if level.weights("rewind") is None:
            seed = experiment.seeds.stream("init", experiment.replicate, level.number, part=1)
            level.save_weights("rewind", experiment.redraw(seed))
        return stored(level.weights("rewind"), level), 0
    kind: WeightKind
    if experiment.retrain == "weights":
        source, kind = record.level(0), "rewind"
    else:
        source, kind = record.level(level.number - 1), "end"
    weights = stored(source.weights(kind), source)
    level.link_weights("rewind", source.weights_file(kind))
    return weights, experiment.rewind


@dataclass
class _Best:
    """The early-stop point so far: the iteration of minimum validation loss."""

    iteration: int | None = None
    validation: Evaluation = NOT_EVALUATED
    test: Evaluation = NOT_EVALUATED
    state: dict[str, Tensor] = field(default_factory=dict)


class _Training:
    """Where one replicate stands in a level, and all that is recorded of it.

    Args:
        experiment, record, level, monitor: As of :func:`train_level`.
        together: Whether the level is trained at once with those of other replicates, which knows no checkpoints.
    """

    def __init__(
        self, experiment: Experiment, record: Replicate, level: Level, monitor: Monitor, together: bool = False
    ) -> None:
        masks = stored(level.masks(), level)
        start, first = _start(experiment, record, level)
        self.experiment = experiment
        self.record = record
        self.level = level
        self.monitor = monitor
        self.masks = masks
        total = sum(mask.numel() for mask in masks.values())
        self.density = sum(map(count_kept, masks.values())) / total if total else 1.0
        self.first = first
        self.noise_seed = experiment.training_seeds.stream("noise", experiment.replicate, level.number)

        self.together = together
        self.checkpoint = None if together else level.checkpoint()
        # A checkpoint's weights come later, for no layer becomes sparse with weights of NaN, if it diverged.
        self.model, self.optimizer = trainee(experiment, start, masks)
        if not together:
            take_forms(experiment, record, level.number, self.model, self.optimizer)
        self.batches = experiment.batches(level.number)
        self.interval = experiment.evaluation_interval(self.batches.per_epoch)
        self.best = _Best()
        self.last_validation, self.last_test = NOT_EVALUATED, NOT_EVALUATED
        self.losses: list[Tensor] = []
        self.evaluations: dict[int, tuple[float, float, float, float]] = {}
        self.train_seconds = 0.0
        self.earlier_seconds = 0.0
        self.began = self.saved = time.perf_counter()
        self._resume_or_begin()

    def _resume_or_begin(self) -> None:
        checkpoint = self.checkpoint
        if checkpoint is None:
            iteration = self.first
            self.level.log.truncate(0)
            torch.manual_seed(self.noise_seed)
            self.batches.start(iteration)
        else:
            iteration = checkpoint["iteration"]
            try:
                self.level.log.truncate(checkpoint["log_size"])
            except ValueError as error:
                raise ValueError(f"{error}; {self.level.remedy}") from error
            load_dense_state(self.model, checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            best = checkpoint["best"]
            self.best = _Best(
                best["iteration"], Evaluation(*best["validation"]), Evaluation(*best["test"]), best["state"]
            )
            self.train_seconds = checkpoint["train_seconds"]
            self.earlier_seconds = checkpoint["seconds"]
            self.batches.start(iteration)
            _set_random_state(checkpoint["random"])
        self.iteration = self.logged = iteration
        if checkpoint is None:
            self._keep()
        self.monitor.level_begins(
            self.level.number, self.first, iteration, self.experiment.iterations, self.density, self.batches.per_epoch
        )

    def stepper(self) -> Stepper:
        """What trains the network of this one replicate, from where it stands."""
        experiment, number = self.experiment, self.level.number
        if self.checkpoint is None and experiment.keep_optimizer and number > 0:
            previous = (experiment.copied_replicate or self.record).level(number - 1)
            load_dense_optimizer_state(self.optimizer, self.model, stored(previous.optimizer(), previous))
        kind = stepper_class(experiment.stepper)
        return stepper_of(kind, experiment, self.model, self.optimizer, self.batches, number, self.iteration)

    def stepped(self, losses: Tensor, seconds: float) -> None:
        """Steps were taken, with these losses in so much time."""
        self.losses.append(losses)
        self.train_seconds += seconds
        self.iteration += len(losses)
        self.monitor.stepped(self.iteration, losses)
        if self.level.number == 0 and self.iteration == self.experiment.rewind:
            self.level.save_weights("rewind", self._state())
        self._keep()

    def evaluation_is_due(self) -> bool:
        return self.iteration % self.interval == 0 or self.iteration == self.experiment.iterations

    def evaluated(self, validation: Evaluation, test: Evaluation) -> None:
        """The network as it stands was measured."""
        self.last_validation, self.last_test = validation, test
        self.evaluations[self.iteration] = (validation.loss, validation.accuracy, test.loss, test.accuracy)
        if validation.loss < self.best.validation.loss or (
            self.best.iteration is None and not math.isnan(validation.loss)
        ):
            self.best = _Best(self.iteration, validation, test, self._state())

    def pause(self) -> None:
        """Everything of these steps is done: say so where an epoch ends, save where it is time."""
        last = self.experiment.iterations
        if self.iteration % self.batches.per_epoch == 0 or self.iteration == last:
            known = self.last_validation is not NOT_EVALUATED
            self.monitor.epoch_ends(self.iteration, self.last_validation if known else None)
        if self.together or self.iteration == last:
            return
        if time.perf_counter() - self.saved >= self.experiment.checkpoint_seconds:
            self._save_checkpoint()

    def next_stop(self) -> int:
        """The next iteration after which something other than a step happens."""
        stops = [self.experiment.iterations]
        for interval in (self.interval, self.batches.per_epoch):
            stops.append((self.iteration // interval + 1) * interval)
        if self.level.number == 0:
            points = (self.experiment.rewind, *self.experiment.keep)
            stops.extend(point for point in points if point > self.iteration)
        return min(stops)

    def _keep(self) -> None:
        if self.level.number == 0 and self.iteration in self.experiment.keep:
            self.level.save_kept(self.iteration, self._state())

    def measure(self, loader: Any) -> Evaluation:
        """The network as it stands on ``loader``."""
        if loader is None:
            return NOT_EVALUATED
        # A DataLoader draws random numbers even in a fixed order. How often one looks must not change the training.
        with own_random_state(self.experiment.device, loader_generators(loader)):
            seed_loader(loader, self.noise_seed)
            with forward_precision(self.experiment.precision, self.experiment.device):
                return evaluate(self.model, self.experiment.criterion, loader)

    def _state(self) -> dict[str, Tensor]:
        """The plain state dict, a copy on the CPU, pruned weights zero whatever the optimizer did."""
        return {name: value.detach().to("cpu", copy=True) for name, value in dense_state(self.model).items()}

    def _write_log(self) -> int:
        if self.losses:
            losses = torch.cat(self.losses)
            sparsity = 100.0 * (1.0 - self.density)
            self.level.log.append(self.logged + 1, losses, sparsity, self.evaluations)
            self.logged += len(losses)
            self.losses, self.evaluations = [], {}
        return self.level.log.size

    def _save_checkpoint(self) -> None:
        # The log first: rows behind the size that the checkpoint names are dropped on resume, missing ones were lost.
        log_size = self._write_log()
        self.level.save_checkpoint(
            {
                "iteration": self.iteration,
                "log_size": log_size,
                "model": self._state(),
                "optimizer": self.optimizer.state_dict(),
                "best": {
                    key: tuple(value) if isinstance(value, Evaluation) else value
                    for key, value in vars(self.best).items()
                },
                "random": _random_state(self.experiment.device),
                "train_seconds": self.train_seconds,
                "seconds": self._seconds(),
            }
        )
        self.saved = time.perf_counter()

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began

    def store(self) -> None:
        """Store everything but the summary."""
        self._write_log()
        self.level.save_weights("end", self._state())
        if self.best.iteration is not None:
            self.level.save_weights("early_stop", self.best.state)
        if self.experiment.keep_optimizer:
            self.level.save_optimizer(dense_optimizer_state(self.optimizer, self.model))

    def line(self) -> dict[str, Any]:
        """What a second copy is for: the line from the first one's end to this one's, which is stored already."""
        if self.experiment.copied_replicate is None:
            return {}
        self.monitor.line_begins(self.level.number)
        copied = self.experiment.copied_replicate.level(self.level.number)
        ends = (stored(level.weights("end"), level) for level in (copied, self.level))
        return line_between(self.experiment, self.level.number, *ends)

    def complete(self, line: Mapping[str, Any]) -> None:
        """Store the summary, ``line`` in it, which makes the level complete."""
        self.level.save_summary(
            {
                "level": self.level.number,
                "density": self.density,
                "layers": {name: float(mask.double().mean()) for name, mask in self.masks.items()},
                "first_iteration": self.first + 1,
                "iterations": self.experiment.iterations - self.first,
                "early_stop_iteration": self.best.iteration,
                "early_stop_accuracy": self.best.test.accuracy,
                "early_stop_valid_loss": self.best.validation.loss,
                "valid_loss": self.last_validation.loss,
                "valid_accuracy": self.last_validation.accuracy,
                "test_loss": self.last_test.loss,
                "test_accuracy": self.last_test.accuracy,
                "seconds": self._seconds(),
                "train_seconds": self.train_seconds,
                **line,
            }
        )


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
