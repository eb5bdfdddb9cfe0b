"""Training one level to its end, from wherever its checkpoint stands."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.forms import take_forms
from lth_fast.experiment.progress import Monitor
from lth_fast.nn import dense_state, set_masks
from lth_fast.optim import dense_optimizer_state, load_dense_optimizer_state
from lth_fast.record import Level, Replicate
from lth_fast.train import EagerStepper, Evaluation, evaluate, own_random_state, seed_loader
from lth_fast.train.precision import forward_precision

# Steps are taken in chunks of about this many seconds: short for a lively progress bar and prompt checkpoints, long
# enough that the loop around them costs nothing. The size of the chunks changes no result.
CHUNK_SECONDS = 0.5

NOT_EVALUATED = Evaluation(math.nan, math.nan)

Stored = TypeVar("Stored")


def stored(value: Stored | None, level: Level) -> Stored:
    """``value``, which a complete level must have on the disk."""
    if value is None:
        raise FileNotFoundError(f"{level.path}: a file of this complete level is missing; was it deleted?")
    return value


def train_level(experiment: Experiment, record: Replicate, level: Level, monitor: Monitor) -> None:
    """Train ``level`` and store its results; its masks are stored already.

    Level 0 starts from the initial weights and trains steps 1 to T. Every other level starts from the weights after
    step k of level 0, masked, with a fresh optimizer, and trains steps k + 1 to T of its own order; with new weights
    (branch ``reinit``) it trains all of them.
    """
    masks = stored(level.masks(), level)
    start, first = _start(experiment, record, level)
    training = _Training(experiment, record, level, masks, start, first, monitor)
    if training.checkpoint is None and experiment.keep_optimizer and level.number > 0:
        previous = record.level(level.number - 1)
        load_dense_optimizer_state(training.optimizer, training.model, stored(previous.optimizer(), previous))
    training.run()
    training.finish()


def _start(experiment: Experiment, record: Replicate, level: Level) -> tuple[dict[str, Tensor], int]:
    """The weights that ``level`` starts from, which it stores, and the iteration they stand for."""
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
    level.link_weights("rewind", record.level(0))
    return stored(level.weights("rewind"), level), experiment.rewind


@dataclass
class _Best:
    """The early-stop point so far: the iteration of minimum validation loss."""

    iteration: int | None = None
    validation: Evaluation = NOT_EVALUATED
    test: Evaluation = NOT_EVALUATED
    state: dict[str, Tensor] = field(default_factory=dict)


class _Training:
    def __init__(
        self,
        experiment: Experiment,
        record: Replicate,
        level: Level,
        masks: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        first: int,
        monitor: Monitor,
    ) -> None:
        self.experiment = experiment
        self.level = level
        self.monitor = monitor
        self.masks = masks
        total = sum(mask.numel() for mask in masks.values())
        self.density = sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0
        self.first = first
        self.noise_seed = experiment.seeds.stream("noise", experiment.replicate, level.number)

        self.model = copy.deepcopy(experiment.model).to(experiment.device)
        self.checkpoint = level.checkpoint()
        # Plain while it is filled and its optimizer made: a mask on a bias changes the parameter's name.
        self.model.load_state_dict(start if self.checkpoint is None else self.checkpoint["model"])
        self.optimizer = experiment.optimizer.build(self.model)
        set_masks(self.model, {name: mask for name, mask in masks.items() if not bool(mask.all())})
        take_forms(experiment, record, level.number, self.model, self.optimizer)
        self.batches = experiment.batches(level.number)
        self.interval = experiment.evaluation_interval(self.batches.per_epoch)
        self.stepper = EagerStepper(
            self.model,
            self.optimizer,
            experiment.criterion,
            self.batches,
            schedule=experiment.schedule,
            precision=experiment.precision,
        )

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
            self.level.log.truncate(checkpoint["log_size"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            best = checkpoint["best"]
            self.best = _Best(
                best["iteration"], Evaluation(*best["validation"]), Evaluation(*best["test"]), best["state"]
            )
            self.train_seconds = checkpoint["train_seconds"]
            self.earlier_seconds = checkpoint["seconds"]
            self.batches.start(iteration)
            _set_random_state(checkpoint["random"])
        self.stepper.iteration = self.iteration = self.logged = iteration
        self.monitor.level_begins(
            self.level.number, self.first, iteration, self.experiment.iterations, self.density, self.batches.per_epoch
        )

    def run(self) -> None:
        last = self.experiment.iterations
        chunk = 1
        if self.iteration == 0:
            self._keep()
        while self.iteration < last:
            steps = min(chunk, self._next_stop() - self.iteration)
            began = time.perf_counter()
            self.losses.append(self.stepper.advance(steps).cpu())
            seconds = time.perf_counter() - began
            self.train_seconds += seconds
            self.iteration += steps
            chunk = max(1, min(4 * chunk, int(CHUNK_SECONDS * steps / max(seconds, 1e-9))))
            self.monitor.stepped(self.iteration, self.losses[-1])

            if self.level.number == 0 and self.iteration == self.experiment.rewind:
                self.level.save_weights("rewind", self._state())
            self._keep()
            if self.iteration % self.interval == 0 or self.iteration == last:
                self._evaluate()
            if self.iteration % self.batches.per_epoch == 0 or self.iteration == last:
                self.monitor.epoch_ends(self.iteration, self.last_validation)
            if self.iteration < last and time.perf_counter() - self.saved >= self.experiment.checkpoint_seconds:
                self._save_checkpoint()

    def _next_stop(self) -> int:
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

    def _evaluate(self) -> None:
        validation = self._measure(self.experiment.loaders.validation)
        test = self._measure(self.experiment.loaders.test)
        self.last_validation, self.last_test = validation, test
        self.evaluations[self.iteration] = (validation.loss, validation.accuracy, test.loss, test.accuracy)
        if validation.loss < self.best.validation.loss or (
            self.best.iteration is None and not math.isnan(validation.loss)
        ):
            self.best = _Best(self.iteration, validation, test, self._state())

    def _measure(self, loader: Any) -> Evaluation:
        if loader is None:
            return NOT_EVALUATED
        # A DataLoader draws random numbers even in a fixed order. How often one looks must not change the training.
        with own_random_state(self.experiment.device):
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

    def finish(self) -> None:
        """Store the results of the trained level; the summary comes last, it makes the level complete."""
        self._write_log()
        self.level.save_weights("end", self._state())
        if self.best.iteration is not None:
            self.level.save_weights("early_stop", self.best.state)
        if self.experiment.keep_optimizer:
            self.level.save_optimizer(dense_optimizer_state(self.optimizer, self.model))
        self.level.save_summary(
            {
                "level": self.level.number,
                "density": self.density,
                "layers": {name: float(mask.float().mean()) for name, mask in self.masks.items()},
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
