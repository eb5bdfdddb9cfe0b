"""Settings of the published experiments, by network and data set, named as the flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lth_fast._names import match_name
from lth_fast.models.catalogue import kind_of

Settings = Mapping[str, Any]

_SGD: Settings = {"optim": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "augment": True, "learn_rate": 0.1}
_GLOBAL: Settings = {"scope": "global", "prune_rate": 0.2}

# Linear Mode Connectivity and the Lottery Ticket Hypothesis (1912.05671v4), appendix A: networks that the first paper
# did not train. 63,000 iterations are its "63K"; rewind points are where its networks become stable.
_LMC: Settings = {**_SGD, **_GLOBAL, "batch_size": 128, "iter": 63_000, "milestones": (32_000, 48_000)}
_LMC_RESNET: Settings = {**_LMC, "rewind": 2000, "whole": ("output", "shortcuts")}
_LMC_VGG: Settings = {**_LMC, "rewind": 1000, "whole": ("output",)}

# The Lottery Ticket Hypothesis (1803.03635v5), figure 2 and appendices G to I; rewind points of the two deep networks
# from Stabilizing the Lottery Ticket Hypothesis (1903.01611v3). The output layer is pruned at half the rate of the
# other Linear layers, which is the 10 % of figure 2. Its Gaussian Glorot weights stand where a network's own
# initialisation is another.
_CONV: Settings = {"batch_size": 60, "optim": "adam", "fc_rate": 0.2, "rewind": 0}
_PAPER: Mapping[str, Settings] = {
    "lenet": {"batch_size": 60, "iter": 50_000, "optim": "adam", "learn_rate": 1.2e-3, "prune_rate": 0.2, "rewind": 0},
    "conv2": {**_CONV, "iter": 20_000, "learn_rate": 2e-4, "prune_rate": 0.1},
    "conv4": {**_CONV, "iter": 25_000, "learn_rate": 3e-4, "prune_rate": 0.1},
    "conv6": {**_CONV, "iter": 30_000, "learn_rate": 3e-4, "prune_rate": 0.15},
    "resnet20": {
        **_SGD,
        **_GLOBAL,
        "init": "glorot",
        "batch_size": 128,
        "iter": 30_000,
        "milestones": (20_000, 25_000),
        "whole": ("output", "shortcuts"),
        "rewind": 500,
    },
    # 80 and 120 of 160 epochs.
    "vgg19": {
        **_SGD,
        **_GLOBAL,
        "init": "glorot",
        "batch_size": 64,
        "iter": 112_000,
        "milestones": (56_000, 84_000),
        "whole": ("output",),
        "rewind": 100,
    },
    **{name: _LMC_RESNET for name in ("resnet32", "resnet44", "resnet56", "resnet110")},
    **{name: _LMC_VGG for name in ("vgg11", "vgg13", "vgg16")},
}

# Defaults of OpenLTH (default_hparams of its models): epochs of all 50,000 CIFAR and 60,000 MNIST images in batches of
# 128, one threshold over all layers (of ResNets the output layer too), no rewinding. What still differs is in
# docs/experiments.md.
_OPENLTH_ALL: Settings = {
    **_GLOBAL,
    "count": "openlth",
    "init": "openlth",
    "validation": 0,
    "batch_size": 128,
    "optim": "sgd",
    "learn_rate": 0.1,
    "rewind": 0,
}
_OPENLTH_CIFAR: Settings = {**_OPENLTH_ALL, **_SGD, "iter": 160 * 391, "milestones": (80 * 391, 120 * 391)}
_OPENLTH_VGG: Settings = {**_OPENLTH_CIFAR, "whole": ("output",)}
_OPENLTH_RESNET: Settings = {**_OPENLTH_CIFAR, "whole": ()}
_OPENLTH: Mapping[str, Settings] = {
    "lenet": {**_OPENLTH_ALL, "iter": 40 * 469, "whole": ("output",)},
    **{name: _OPENLTH_VGG for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    **{name: _OPENLTH_RESNET for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")},
}

_PRESETS: Mapping[str, Mapping[str, Settings]] = {"paper": _PAPER, "openlth": _OPENLTH}
_OF_TORCHVISION: Mapping[str, tuple[Settings, Settings]] = {
    "paper": (_LMC_VGG, _LMC_RESNET),
    "openlth": (_OPENLTH_VGG, _OPENLTH_RESNET),
}

presets: tuple[str, ...] = tuple(_PRESETS)

# The digits of scikit-learn are our own small stand-in for MNIST: 1,297 training images are seen 92 times in this many
# iterations of 60, MNIST's 55,000 are seen 55 times in 50,000.
_DATASETS: Mapping[str, Settings] = {"digits": {"iter": 2_000}}

_DEEP = ("vgg", "resnet", "torchvision")


def preset(name: str, net: str, dataset: str) -> dict[str, Any]:
    """The settings that the preset ``name`` has for ``net`` on ``dataset``; what it leaves open is missing.

    A network that nobody published settings of gets those of its kind: torchvision's those of the deep networks in
    1912.05671 or in OpenLTH, one of your own none.

    Args:
        name: One of :data:`presets`, or an unambiguous prefix.
        net: A network's name as :func:`lth_fast.models.canonical` gives it.
        dataset: A data set's name as in :data:`lth_fast.data.datasets`.

    Raises:
        ValueError: No such preset.
    """
    chosen = match_name(name, presets, "preset")
    kind = kind_of(net) or ""
    settings = dict(_PRESETS[chosen].get(kind, {}))
    if kind == "torchvision":
        vgg, others = _OF_TORCHVISION[chosen]
        settings = dict(vgg if "vgg" in net else others)
    if chosen == "paper" and dataset in _DATASETS:
        shorter = _DATASETS[dataset]["iter"]
        if "milestones" in settings:
            settings["milestones"] = tuple(
                in_proportion(each, shorter, settings["iter"]) for each in settings["milestones"]
            )
        if settings.get("rewind"):
            settings["rewind"] = in_proportion(settings["rewind"], shorter, settings["iter"])
        settings.update(_DATASETS[dataset])
    if "augment" in settings and dataset in ("mnist", "digits", "svhn"):
        settings["augment"] = False  # a mirrored digit is another sign
    return settings


def in_proportion(iteration: int, iterations: int, of: int) -> int:
    """The iteration, at least 1, of a training of ``iterations`` that ``iteration`` is in one of ``of`` iterations."""
    return max(1, iteration * iterations // of)


def every_setting() -> list[Settings]:
    """All settings of all presets, to see which flags they set."""
    return [settings for networks in _PRESETS.values() for settings in networks.values()]


def shown_to_fail(net: str, rewind: int, learn_rate: float, optim: str, retrain: str) -> str | None:
    """One line of warning where the papers show that no ticket is found; ``None`` elsewhere."""
    risky = rewind == 0 and retrain == "weights" and optim == "sgd" and learn_rate >= 0.03
    if risky and (kind_of(net) or "").startswith(_DEEP):
        return (
            f"{net} at learning rate {learn_rate:g} finds no ticket without rewinding (1803.03635, section 4; "
            "1903.01611): consider --rewind 500"
        )
    return None
