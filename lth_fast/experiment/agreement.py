"""Whether an experiment is the one of a recorded run: of one that goes on, or of the ticket run of a control arm."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from lth_fast.experiment.experiment import Experiment


class RunRefusedError(ValueError):
    """Going on with the run here would make something else of it. Nothing was changed."""


def compared(experiment: Experiment) -> dict[str, Any]:
    """What must be the same, beside the settings, in a run that goes on and in a control arm; as in the manifest."""
    sizes = {name: _size(loader) for name, loader in experiment.loaders._asdict().items() if loader is not None}
    return {
        "optimizer": experiment.optimizer.describe(),
        "examples": sizes,
        "model": _without_addresses(repr(experiment.model)),
        "criterion": _criterion_described(experiment.criterion),
        "batches": len(experiment.loaders.train),
    }


def unlike(experiment: Experiment, manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What of :func:`compared` is another in ``manifest``, by key: how it is there and here."""
    found = {}
    for key, here in compared(experiment).items():
        there = manifest.get(key)
        if there is None and key in ("criterion", "batches"):  # an earlier version did not record them
            continue
        if isinstance(there, str) and isinstance(here, str):
            there = _without_addresses(there)
            lines = zip_longest(there.splitlines(), here.splitlines(), fillvalue="nothing")
            there, here = next(((one.strip(), other.strip()) for one, other in lines if one != other), (there, here))
        if there != here:
            found[key] = there, here
    return found


def check_network(state: Mapping[str, Tensor], initial: Mapping[str, Tensor], of: str) -> None:
    """Refuse a network whose ``state`` has not the names and shapes of the ``initial`` weights ``of`` another run.

    Raises:
        RunRefusedError: The message names what differs.
    """
    here, there = ({name: [*value.shape] for name, value in one.items()} for one in (state, initial))
    differing = [
        f"{name} of shape {there.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise RunRefusedError(f"model: expected the network of {of}, got {'; '.join(differing)}")


def _criterion_described(criterion: Callable[..., Any]) -> str:
    """A loss as far as its type, name and settings tell it."""
    if isinstance(criterion, nn.Module):
        # Settings that torch's losses do not print; other attributes may be counters.
        settings = [f"{name}={getattr(criterion, name, None)}" for name in getattr(criterion, "__constants__", ())]
        return _without_addresses(" with ".join(filter(None, (repr(criterion), ", ".join(settings)))))
    return _without_addresses(getattr(criterion, "__qualname__", None) or repr(criterion))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _size(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
