"""The settings of a run: what was given, what the presets say, what holds otherwise."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lth_fast._names import match_name
from lth_fast.data import datasets
from lth_fast.experiment.flags import BY_NAME
from lth_fast.experiment.presets import paper_preset
from lth_fast.models import canonical

Source = Literal["given", "preset", "default"]

# May differ when a run is recovered: they say where things are, not what they are.
PLACES = ("data", "save")


@dataclass(frozen=True)
class Config:
    """A run's settings. Names and meanings are those of the flags (:data:`lth_fast.experiment.flags.FLAGS`).

    Made by :meth:`resolve`, which checks every value; ``rewind`` is an iteration then, ``seed`` is a number.
    """

    net: str
    dataset: str
    data: str = "./datasets/"
    batch_size: int = 128
    optim: str = "sgd"
    learn_rate: float = 0.01
    iter: int = 50_000
    rounds: int = 26
    step: int = 100
    rewind: int = 0
    prune_rate: float = 0.2
    save: str = "./experiments/"
    seed: int = 0
    init_seed: int | None = None
    order_seed: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 10.0
    gpu: bool = False
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @classmethod
    def resolve(cls, net: str, dataset: str, given: Mapping[str, Any]) -> Config:
        """Fill in what was not given: the preset of (net, dataset) first, then the defaults above.

        Args:
            net: Network in any case, or an unambiguous prefix.
            dataset: Data set, likewise.
            given: Values by flag name, as texts or Python values.

        Raises:
            ValueError: A name or a value is wrong; the message names the flag, what is expected and what was given.
        """
        net, dataset = canonical(net), match_name(dataset, datasets, "data set")
        preset = paper_preset(net, dataset)
        family = net.split(":")[0]
        values: dict[str, Any] = {
            "seed": secrets.randbits(31),
            "threads": 1 if family == "lenet" else torch.get_num_threads(),
        }
        sources: dict[str, Source] = {}
        for name, flag in BY_NAME.items():
            if name in given:
                values[name], sources[name] = flag.read(given[name]), "given"
            elif name in preset:
                values[name], sources[name] = preset[name], "preset"
            else:
                sources[name] = "default"
        config = cls(net, dataset, **values, sources=sources)
        return dataclasses.replace(config, rewind=rewind_iteration(config.rewind, config.iter))

    @classmethod
    def from_record(cls, recorded: Mapping[str, Any]) -> Config:
        """The configuration that :meth:`to_record` wrote."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(recorded) - known)
        if unknown:
            raise ValueError(f"the record holds settings that this lth_fast does not know: {', '.join(unknown)}")
        return cls(**recorded)

    def to_record(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self)

    def recovered_with(self, net: str | None, dataset: str | None, given: Mapping[str, Any]) -> Config:
        """This configuration, for going on with its run; what was given may not contradict it.

        Raises:
            ValueError: Something given has another value than the run's; the message names all of it.
        """
        wanted: dict[str, Any] = {name: BY_NAME[name].read(value) for name, value in given.items()}
        if "rewind" in wanted:
            wanted["rewind"] = rewind_iteration(wanted["rewind"], self.iter)
        if net is not None:
            wanted["net"] = canonical(net)
        if dataset is not None:
            wanted["dataset"] = match_name(dataset, datasets, "data set")
        places = {name: wanted.pop(name) for name in PLACES if name in wanted}
        wrong = [
            f"{name} is {getattr(self, name)} in the run, {value} was given"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise ValueError(f"--recover goes on with the run's own settings: {'; '.join(wrong)}")
        return dataclasses.replace(self, **places)


def rewind_iteration(rewind: int | float, iterations: int) -> int:
    """The iteration that ``rewind``, itself one or a share in (0, 1), means in a run of ``iterations``.

    Raises:
        ValueError: It leaves nothing to train.
    """
    iteration = round(rewind * iterations) if isinstance(rewind, float) else rewind
    if iteration >= iterations:
        raise ValueError(f"--rewind: expected an iteration before the last one ({iterations}), got {rewind}")
    return iteration
