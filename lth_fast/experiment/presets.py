"""Settings of the published experiments, by network and data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Frankle & Carbin 2019 (arXiv 1803.03635v5), Figure 2 and Appendices G and H.
_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "lenet": {"batch_size": 60, "iter": 50_000, "optim": "adam", "learn_rate": 1.2e-3, "prune_rate": 0.2},
}

# The digits of scikit-learn are our own small stand-in for MNIST: 1,297 training images are seen 90 times in this many
# iterations, MNIST's 55,000 are seen 55 times in 50,000.
_DATASETS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"iter": 2_000},
}


def paper_preset(net: str, dataset: str) -> dict[str, Any]:
    """The settings of ``net`` on ``dataset``, by flag name; what the papers leave open is missing.

    Args:
        net: A network's name as :func:`lth_fast.models.canonical` gives it.
        dataset: A data set's name as in :data:`lth_fast.data.datasets`.
    """
    family = net.split(":")[0]
    return {**_NETWORKS.get(family, {}), **_DATASETS.get(dataset, {})}
