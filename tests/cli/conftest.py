from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lth_fast import cli
from lth_fast.experiment import level as level_module
from lth_fast.record import Level, Run, open_run
from lth_fast.train import EagerStepper


@dataclass
class Outcome:
    """What a command left behind.

    Attributes:
        code: Its exit code.
        out, err: What it printed.
        save: Folder of the runs.
        steps: What :class:`Spy` saw, one entry per optimizer step, in tests that ask for ``spied_steps``.
    """

    code: int
    out: str
    err: str
    save: Path
    steps: list[Step]

    @property
    def run(self) -> Run:
        (path,) = self.save.iterdir()
        return open_run(path)

    def level(self, number: int) -> Level:
        return self.run.replicate(0).level(number)

    @property
    def configuration(self) -> dict[str, Any]:
        return self.run.manifest()["configuration"]


@dataclass
class Step:
    """One optimizer step: its level, its number, what it saw, and the network after it."""

    level: int
    iteration: int
    optimizer: torch.optim.Optimizer
    rates: list[float]
    threads: int
    labels: torch.Tensor
    loss: float
    state: dict[str, torch.Tensor]


class Spy(EagerStepper):
    """Takes the steps one by one and writes down what they are."""

    steps: ClassVar[list[Step]] = []
    levels: ClassVar[int] = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.level = type(self).levels
        type(self).levels += 1
        draw = self.batches.next

        def drawn() -> Any:
            self.batch = draw()
            return self.batch

        self.batches.next = drawn  # type: ignore[method-assign]

    def advance(self, steps: int) -> torch.Tensor:
        losses = []
        for _ in range(steps):
            losses.append(super().advance(1))
            rates = [group["lr"] for group in self.optimizer.param_groups]
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.steps.append(
                Step(
                    self.level,
                    self.iteration,
                    self.optimizer,
                    rates,
                    torch.get_num_threads(),
                    self.batch[1],
                    losses[-1].item(),
                    state,
                )
            )
        return torch.cat(losses)


Command = Callable[..., Outcome]


@pytest.fixture
def spied_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every optimizer step of a command written down in ``Outcome.steps``."""
    monkeypatch.setattr(level_module, "stepper_class", lambda name: Spy)


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs of most tests."""
    monkeypatch.setattr(cli, "figure", lambda run: run.path / "report.png")


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figure: None) -> Command:
    """``command("lenet", "digits", "--iter", "5")`` in this process; runs go to a new folder for each call."""
    calls = 0

    def run(*arguments: str, save: bool = True) -> Outcome:
        nonlocal calls
        calls += 1
        folder = tmp_path / f"runs {calls}"
        Spy.steps, Spy.levels = [], 0
        capsys.readouterr()
        code = cli.main([*arguments, *(("--save", str(folder)) if save else ())])
        return Outcome(code, *capsys.readouterr(), folder, Spy.steps)

    return run


@pytest.fixture
def bits() -> Callable[[Run], dict[str, Any]]:
    """All that a complete run must give again bit for bit: logs, tensors, and summaries without their times."""

    def of(run: Run) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in sorted(run.path.glob("replicate_*/**/*")):
            if file.suffix in (".csv", ".safetensors"):
                found[str(file.relative_to(run.path))] = file.read_bytes()
        for replicate in run.replicates():
            for level in replicate.levels():
                summary = level.summary() or {}
                found[f"{replicate.number}/{level.number}"] = {
                    key: value for key, value in summary.items() if "seconds" not in key
                }
        return found

    return of
