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
from lth_fast.experiment.presets import in_proportion
from lth_fast.experiment.presets import preset as preset_settings
from lth_fast.models import canonical
from lth_fast.models.catalogue import kind_of

Source = Literal["given", "preset", "default"]


@dataclass(frozen=True)
class Config:
    """A run's settings. Names and meanings are those of the flags (:data:`lth_fast.experiment.flags.FLAGS`).

    Made by :meth:`resolve`, which checks every value; ``rewind`` is an iteration then, ``seed`` is a number. ``ticket``
    is no flag: the folder of the run that a control arm takes its masks from.
    """

    net: str
    dataset: str
    data: str = "./datasets/"
    validation: int | float | None = None
    batch_size: int = 128
    optim: str = "sgd"
    learn_rate: float = 0.01
    iter: int = 50_000
    rounds: int = 26
    replicates: int = 1
    step: int = 100
    rewind: int = 0
    retrain: str = "weights"
    prune_rate: float = 0.2
    fc_rate: float | None = None
    scope: str = "layerwise"
    score: str = "magnitude"
    distribution: str = "uniform"
    whole: tuple[str, ...] = ()
    count: str = "nearest"
    prune_bias: bool = False
    branch: str = "ticket"
    init: str | None = None
    keep_optimizer: bool = False
    keep: tuple[int, ...] = ()
    dropout: float = 0.0
    augment: bool = False
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    warmup: int = 0
    precision: str = "float32"
    preset: str = "paper"
    save: str = "./experiments/"
    seed: int = 0
    init_seed: int | None = None
    order_seed: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 10.0
    gpu: bool = False
    plan: str = "auto"
    ticket: str | None = None
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
        net, dataset = canonical(net), match_name(dataset, datasets, "data set", separators_count=False)
        given = expanded(given)
        preset = preset_settings(BY_NAME["preset"].read(given.get("preset", cls.preset)), net, dataset)
        values: dict[str, Any] = {
            "seed": secrets.randbits(31),
            "threads": 1 if kind_of(net) == "lenet" else torch.get_num_threads(),
        }
        sources: dict[str, Source] = {}
        for name, flag in BY_NAME.items():
            if flag.stands_for is not None:
                continue
            if name in given:
                values[name], sources[name] = flag.read(given[name]), "given"
            elif name in preset:
                values[name], sources[name] = preset[name], "preset"
            else:
                sources[name] = "default"

        def leave(*names: str) -> None:
            """Take the defaults for what the preset says of these."""
            for name in names:
                if sources[name] == "preset":
                    del values[name]
                    sources[name] = "default"

        # Alone, --prune_rate sets every layer; --scope global means one threshold, erk one rate for all.
        if "given" in (sources["prune_rate"], sources["scope"], sources["distribution"]):
            leave("fc_rate")
        if values.get("distribution", cls.distribution) != "uniform":
            leave("scope")
        if values.get("scope") != "global" or values.get("fc_rate") is not None:
            leave("count")
        if values.get("scope") == "global" and sources["whole"] == "default":
            values["whole"] = ("output",)
        # The preset's settings belong to its own optimizer.
        if sources["optim"] == "given" and values["optim"] != preset.get("optim"):
            leave("learn_rate", "momentum", "weight_decay")
        if sources["rewind"] == "preset" and values["rewind"] >= values["iter"]:
            shorter = in_proportion(values["rewind"], values["iter"], preset["iter"])
            values["rewind"] = min(shorter, values["iter"] - 1)
        if sources["milestones"] == "preset" and values["milestones"][-1] >= values["iter"]:
            earlier = (in_proportion(each, values["iter"], preset["iter"]) for each in values["milestones"])
            values["milestones"] = tuple(dict.fromkeys(earlier))
        config = cls(net, dataset, **values, sources=sources)
        config = dataclasses.replace(config, rewind=rewind_iteration(config.rewind, config.iter))
        config._check_together()
        return config

    def _check_together(self) -> None:
        if self.distribution != "uniform" and self.scope != "layerwise":
            raise ValueError(f"--distribution: expected uniform with --scope {self.scope}, got {self.distribution!r}")
        if self.distribution != "uniform" and self.fc_rate is not None:
            raise ValueError(f"--fc_rate: expected with --distribution uniform, got it with {self.distribution!r}")
        if self.count != "nearest" and (self.scope != "global" or self.fc_rate is not None):
            raise ValueError(f"--count: expected nearest without --scope global or with --fc_rate, got {self.count!r}")
        if self.retrain != "weights" and self.branch not in ("ticket", "reorder"):
            raise ValueError(f"--retrain: expected weights with --branch {self.branch}, got {self.retrain!r}")
        if self.keep and self.keep[-1] > self.iter:
            raise ValueError(f"--keep: expected iterations up to --iter {self.iter}, got {self.keep[-1]}")
        if self.nesterov and not self.momentum:
            raise ValueError("--nesterov: expected with a --momentum > 0, got momentum 0")
        if self.precision == "tf32" and not self.gpu:
            raise ValueError("--precision: expected float32 or bf16 without --gpu, got 'tf32'")
        if self.scope == "layerwise" and self.prune_rate == self.fc_rate == 0:
            raise ValueError("--fc_rate: expected a rate > 0 beside --prune_rate 0, got 0")

    @classmethod
    def from_record(cls, recorded: dict[str, Any]) -> Config:
        """The configuration that :meth:`to_record` wrote.

        Raises:
            ValueError: It was changed since: it lacks something, or a value is wrong.
        """
        if not all(isinstance(recorded.get(key), str) for key in ("net", "dataset")):
            raise ValueError("the record should name a network and a data set")
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(recorded) - known)
        if unknown:
            raise ValueError(f"the record holds settings that this lth_fast does not know: {', '.join(unknown)}")
        # An earlier version may not have known a setting; one that it names the source of was taken out.
        sources, ticket = recorded.get("sources", {}), recorded.get("ticket")
        lacking = sorted(set(sources) & known - set(recorded)) if isinstance(sources, dict) else ["sources"]
        if lacking or not isinstance(ticket, str | None):
            raise ValueError(f"the record lacks {', '.join(lacking) or 'the folder of its ticket run'}")
        values = dict(recorded)
        for name in recorded.keys() & BY_NAME.keys() - {"plan"}:  # the run of a plan may be gone
            if recorded[name] is not None or getattr(cls, name) is not None:
                values[name] = BY_NAME[name].read(recorded[name], f"the record's {name}")
        return cls(**values)

    def to_record(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self)

    def recovered_with(
        self, net: str | None, dataset: str | None, given: Mapping[str, Any], *, force: bool = False
    ) -> Config:
        """This configuration, for going on with its run; what was given may not contradict it.

        The folder of the data may have moved. With ``force`` the threads may differ, and the bits then too.

        Raises:
            ValueError: Something given has another value than the run's; the message names all of it.
        """
        wanted: dict[str, Any] = {name: BY_NAME[name].read(value) for name, value in expanded(given).items()}
        if "rewind" in wanted:
            wanted["rewind"] = rewind_iteration(wanted["rewind"], self.iter)
        if net is not None:
            wanted["net"] = canonical(net)
        if dataset is not None:
            wanted["dataset"] = match_name(dataset, datasets, "data set", separators_count=False)
        free = ("data", "threads") if force else ("data",)
        changed = {name: wanted.pop(name) for name in free if name in wanted}
        wrong = [
            f"{name} is {getattr(self, name)} in the run, {value} was given"
            + (", for which --force is needed" if name == "threads" else "")
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise ValueError(f"--recover goes on with the run's own settings: {'; '.join(wrong)}")
        return dataclasses.replace(self, **changed)


def expanded(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the switches that only stand for a value of another setting replaced by it.

    Raises:
        ValueError: Both were given and differ.
    """
    result = dict(given)
    for name, value in given.items():
        target = BY_NAME[name].stands_for
        if target is None or not value:
            continue
        setting, meaning = target
        if setting in given and BY_NAME[setting].read(given[setting]) != meaning:
            raise ValueError(f"--{name}: means --{setting} {meaning}, got it with --{setting} {given[setting]}")
        del result[name]
        result[setting] = meaning
    return result


def rewind_iteration(rewind: int | float, iterations: int, called: str = "--rewind") -> int:
    """The iteration that ``rewind``, itself one or a share in (0, 1), means in a run of ``iterations``.

    Args:
        rewind: As :func:`~lth_fast.experiment.flags.rewind_point` gives it.
        iterations: Length of the dense training.
        called: What the message calls it.

    Raises:
        ValueError: It leaves nothing to train.
    """
    iteration = round(rewind * iterations) if isinstance(rewind, float) else rewind
    if iteration >= iterations:
        raise ValueError(f"{called}: expected an iteration before the last one ({iterations}), got {rewind}")
    return iteration
