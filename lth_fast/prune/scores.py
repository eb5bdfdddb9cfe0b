"""Scores: how much a weight is worth. The lowest are pruned; only their order counts.

A score is a function ``(weights, gradients) → name → score tensor`` of each weight's shape, finite where a weight
survives. To add one: a function here and its line in :data:`SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lth_fast.prune.gradients import Gradients


@dataclass(frozen=True)
class Weights:
    """The weights that are scored, and what else a score may look at.

    Attributes:
        trained: Weights as they are, zero where pruned, by parameter name.
        initial: Weights before any training, by parameter name; others may be among them. Only
            :func:`magnitude_increase` needs them.
        generator: CPU generator that random scores are drawn from; ``None``: torch's global one.
    """

    trained: Mapping[str, Tensor]
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None


Score = Callable[[Weights, Gradients], dict[str, Tensor]]


def magnitude(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """``|w|`` (Han et al. 2015, 1506.02626; Frankle & Carbin 2019, 1803.03635). Needs nothing else."""
    return {name: weight.abs() for name, weight in weights.trained.items()}


def random(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """Uniform in [0, 1), drawn from ``weights.generator`` in the order of the names: the control."""
    return {
        name: torch.rand(weight.shape, generator=weights.generator).to(weight.device)
        for name, weight in weights.trained.items()
    }


def magnitude_increase(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """``|w_end| - |w_init|`` (Zhou et al. 2019, 1905.01067, figure 3). Needs ``weights.initial``.

    Raises:
        ValueError: The initial weights lack one, or have one of another shape.
    """
    for name, weight in weights.trained.items():
        if name not in weights.initial:
            raise ValueError(f"initial: magnitude_increase needs the initial value of {name!r}, got none")
        expected, given = list(weight.shape), list(weights.initial[name].shape)
        if given != expected:
            raise ValueError(f"initial: expected shape {expected} for {name!r}, got {given}")
    return {name: weight.abs() - weights.initial[name].to(weight).abs() for name, weight in weights.trained.items()}


def snip(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """``|w g|``, the effect of a weight on the loss (Lee et al. 2019, 1810.02340, equation 6).

    The paper's division by the sum over all weights changes no order and is left out. Needs a criterion and a batch.
    """
    slopes = gradients.of_loss(list(weights.trained))
    return {name: (weight * slopes[name]).abs() for name, weight in weights.trained.items()}


def grasp(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """``w (H g)``, the effect of a weight on the gradient's norm (Wang et al. 2020, 2002.07376, equation 8).

    The paper's score has the other sign and it prunes the highest. The loss is taken as it is: the paper's code divides
    the logits by 200 beforehand, its equations do not. Needs a criterion and a batch.
    """
    products = gradients.hessian_times_loss(list(weights.trained))
    return {name: weight * products[name] for name, weight in weights.trained.items()}


def synflow(weights: Weights, gradients: Gradients) -> dict[str, Tensor]:
    """``|w| ∂R/∂|w|``, a weight's share of the synaptic flow (Tanaka et al. 2020, 2006.05467, equation 2), in float64.

    Needs the shape of a batch.
    """
    flows = gradients.of_flow(list(weights.trained))
    return {name: weight.abs() * flows[name] for name, weight in weights.trained.items()}


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "magnitude_increase": magnitude_increase,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}
"""Every score by its name."""
