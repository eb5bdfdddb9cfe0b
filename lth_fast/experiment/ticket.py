"""The run that a control arm takes its masks from: where it lies, whether it is finished, whether it fits."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from lth_fast.experiment.agreement import check_network, unlike
from lth_fast.experiment.branch import reorders, source_of
from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.level import stored
from lth_fast.record import Run
from lth_fast.record.run import WeightKind

# In these a control arm and the run it is compared with may differ.
NOT_COMPARED = (
    *("branch", "data", "save", "checkpoint_seconds", "gpu", "threads", "ticket", "keep", "plan", "replicates"),
)
# What a second copy needs of every level of the first.
COPIED: tuple[WeightKind, ...] = ("rewind", "end")


def complete(run: Run, replicates: int, rounds: int) -> bool:
    """Whether every level 0 to ``rounds`` of the first ``replicates`` of ``run`` was trained to its end."""
    return all(run.replicate(r).level(level).complete for r in range(replicates) for level in range(rounds + 1))


def located(path: str, control: Run | None) -> Path:
    """The folder of the run at ``path``, or beside its ``control`` arm where the folder of both has moved."""
    beside = Path(path) if control is None else control.path.parent / Path(path).name
    return Path(path) if Path(path).is_dir() or not beside.is_dir() else beside


def check_fit(experiment: Experiment, but: Collection[str] = ()) -> None:
    """Refuse a control arm that cannot be compared with ``ticket``, a run of the same settings.

    Args:
        experiment: The control arm.
        but: What of :func:`~lth_fast.experiment.agreement.compared` may differ.

    Raises:
        ValueError: That run is not finished, lacks masks or what a second copy starts from and is compared with, or
            has it damaged; or it had other data, another optimizer, criterion or network, or other initial weights; or
            ``redraw`` draws no new ones. The message names the argument.
    """
    ticket = experiment.ticket
    assert ticket is not None
    source = f"the {source_of(experiment.branch)} run"
    if not complete(ticket, experiment.replicates, experiment.rounds):
        raise ValueError(
            f"ticket: {ticket.path}: expected a finished run of {experiment.replicates} replicates or more, got one "
            f"with levels to train; recover={str(ticket.path)!r} goes on with one that was stopped"
        )
    for number in range(experiment.replicates):
        replicate = ticket.replicate(number)
        try:
            initial = replicate.initial()
            if initial is None:
                raise FileNotFoundError(f"{replicate.initial_file} is missing; recovering the run writes it again")
            for level in range(experiment.rounds + 1):
                record = replicate.level(level)
                stored(record.masks(), record)
                if reorders(experiment.branch):
                    for kind in COPIED:
                        stored(record.weights(kind), record)
                    if experiment.keep_optimizer and level < experiment.rounds:
                        stored(record.optimizer(), record)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"ticket: {error}") from error
        state = experiment.of_replicate(number).model.state_dict()
        check_network(state, initial, f"{source} {ticket.path}")
        others = [name for name, value in state.items() if not _same(value, initial[name])]
        if others:
            argument = "initialize: expected it to draw" if number else "model: expected"
            raise ValueError(
                f"{argument} the initial weights of replicate {number} of {source}, got others in "
                f"{', '.join(others)}; lth_fast.load_run({str(ticket.path)!r}).run.replicate({number}).initial() is "
                "their state dict"
            )
    for key, (there, here) in unlike(experiment, ticket.manifest()).items():
        if key in but:
            continue
        raise ValueError(f"ticket: {ticket.path}: {key}: expected that run's, {there}, got {here}")
    if experiment.branch == "reinit" and experiment.rounds:
        assert experiment.redraw is not None
        drawn = experiment.redraw(experiment.seeds.stream("init", 0, 1, part=1))
        if all(_same(drawn[name], value) for name, value in experiment.model.state_dict().items()):
            raise ValueError("initialize: expected it to draw new weights into the model it is given, got the old ones")


def _same(one: Tensor, other: Tensor) -> bool:
    one, other = one.cpu(), other.cpu()
    return one.dtype == other.dtype and bool(((one == other) | ((one != one) & (other != other))).all())
