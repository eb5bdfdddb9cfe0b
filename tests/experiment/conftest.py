from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lth_fast.data import ResidentLoader
from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.prune import prune_all
from lth_fast.record import Replicate, Run, create_run
from lth_fast.train import OptimizerRecipe, Seeds


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these lose time to a second thread, and much of it where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def resident(count: int, seed: int, *, size: int = 6, shuffle: bool = False) -> ResidentLoader:
    """Noise in three classes, brighter from class to class, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 150, (count, 1, size, size), generator=generator) + 50 * labels.view(-1, 1, 1, 1)
    return ResidentLoader(
        images.to(torch.uint8),
        labels,
        name="noise",
        classes=3,
        mean=(0.5,),
        std=(0.3,),
        batch_size=10,
        shuffle=shuffle,
    )


def network(seed: int = 0, size: int = 6) -> nn.Module:
    """A little of everything that has a state of its own: convolution, batch norm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(4 * (size - 2) ** 2, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """A small experiment: 7 batches per epoch, 12 iterations, two pruned levels."""

    def make(**changes: Any) -> Experiment:
        settings: dict[str, Any] = {
            "model": network(),
            "loaders": Loaders(resident(65, 1, shuffle=True), resident(20, 2), resident(20, 3)),
            "criterion": nn.CrossEntropyLoss(),
            "optimizer": OptimizerRecipe.named("adam", 0.01),
            "prune_net": partial(prune_all, rate=0.3),
            "iterations": 12,
            "rounds": 2,
            "evaluate_every": 5,
            "seeds": Seeds(1),
            "checkpoint_seconds": 1000.0,
        }
        return Experiment(**{**settings, **changes})

    return make


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[], Run]:
    return lambda: create_run(tmp_path, "small", "noise")


@pytest.fixture
def record(new_run: Callable[[], Run]) -> Replicate:
    return new_run().replicate(0)


class Step(NamedTuple):
    """An optimizer step as torch's hooks see it: parameters before and after, the optimizer's state after."""

    optimizer: Optimizer
    rates: list[float]
    fresh: bool
    before: list[Tensor]
    after: list[Tensor]
    state: list[dict[str, Tensor]]


@pytest.fixture
def optimizer_steps() -> Iterator[list[Step]]:
    """Every optimizer step that is taken anywhere."""
    steps: list[Step] = []
    begun: dict[str, Any] = {}

    def parameters(optimizer: Optimizer) -> list[Tensor]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def before(optimizer: Optimizer, *_: Any) -> None:
        begun.update(fresh=not optimizer.state, before=[p.detach().clone() for p in parameters(optimizer)])

    def after(optimizer: Optimizer, *_: Any) -> None:
        held = parameters(optimizer)
        state = [
            {key: value.clone() for key, value in optimizer.state[p].items() if isinstance(value, Tensor)} for p in held
        ]
        rates = [group["lr"] for group in optimizer.param_groups]
        steps.append(Step(optimizer, rates, **begun, after=[p.detach().clone() for p in held], state=state))

    handles = (register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after))
    yield steps
    for handle in handles:
        handle.remove()


@pytest.fixture
def bits() -> Callable[[Run], dict[str, Any]]:
    """All that a complete run must give again bit for bit: logs, tensors, and summaries without their times."""

    def of(run: Run) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in sorted(run.path.glob("replicate_*/**/*")):
            if file.suffix in (".csv", ".safetensors"):
                found[str(file.relative_to(run.path))] = file.read_bytes()
        for level in run.replicate(0).levels():
            summary = level.summary() or {}
            found[str(level.number)] = {key: value for key, value in summary.items() if "seconds" not in key}
        return found

    return of


@pytest.fixture
def interrupted_after() -> Callable[[int], nn.Module]:
    """A criterion that raises KeyboardInterrupt at the training step behind so many."""

    def make(stop: int) -> nn.Module:
        criterion, steps = nn.CrossEntropyLoss(), count(1)

        def forward(outputs: Tensor, labels: Tensor) -> Tensor:
            if torch.is_grad_enabled() and next(steps) == stop + 1:
                raise KeyboardInterrupt
            return nn.functional.cross_entropy(outputs, labels)

        criterion.forward = forward
        return criterion

    return make


@pytest.fixture
def results() -> Callable[[Run], dict[str, bytes]]:
    """Every file of a run that no times are in, those that should be gone as well."""

    def of(run: Run) -> dict[str, bytes]:
        return {
            str(file.relative_to(run.path)): file.read_bytes()
            for file in sorted(run.path.rglob("*"))
            if file.is_file() and file.name not in ("summary.json", "meta.json", ".lock")
        }

    return of


@pytest.fixture
def fully_connected() -> Callable[..., nn.Module]:
    """Makes a network that native steps can train, the same for the same seed."""

    def make(seed: int = 4) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))

    return make
