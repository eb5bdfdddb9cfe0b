"""The straight line between two networks that were trained from the same weights in two orders of the data.

How far a network's training is at the mercy of that order: the error barrier on the line (linear interpolation
instability, Frankle et al. 2020, 1912.05671, section 2) and the distance between its ends (1903.01611).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lth_fast.experiment.experiment import Experiment
from lth_fast.experiment.stepping import to_device
from lth_fast.nn import load_dense_state
from lth_fast.train import Evaluation, evaluate, loader_generators, own_random_state, seed_loader
from lth_fast.train.precision import forward_precision

POINTS = 30
"""Points of the line, its ends included, as in 1912.05671."""

STATISTICS_BATCHES = 100
"""Training batches, or one epoch if that is less, from which the statistics of BatchNorm are taken."""


def line_between(
    experiment: Experiment, level: int, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Measure the networks on the line from ``first`` to ``second``, and how far these are apart.

    Weights, biases and other floating-point and complex values are interpolated. Running statistics of BatchNorm belong
    to the weights that they were taken under, so every network of the line, its ends too, has statistics taken anew
    from training data, where training takes them at all: between two equal ends there is no barrier.

    Args:
        experiment: Whose data and loss count: the test set, or the validation set where there is none.
        level: Number of the level that both are ends of.
        first: A plain state dict, CPU tensors.
        second: Likewise.

    Returns:
        ``distance``: the Euclidean distance between all parameters. If there is data to evaluate, also
        ``line_loss`` and ``line_accuracy``: of :data:`POINTS` evenly spaced networks, from the first to the second;
        ``loss_barrier`` and ``error_barrier``: the highest loss or error (1 - accuracy) of them over the mean of the
        two ends, >= 0; NaN where any is NaN.
    """
    distance = math.hypot(*(_distance(first[name], second[name]) for name, _ in experiment.model.named_parameters()))
    loader = experiment.loaders.validation if experiment.loaders.test is None else experiment.loaders.test
    if loader is None:
        return {"distance": distance}
    points = []
    for point in range(POINTS):
        share = point / (POINTS - 1)
        model = to_device(copy.deepcopy(experiment.model), experiment.device)
        load_dense_state(model, {name: _between(first[name], second[name], share) for name in first})
        points.append(_measured(experiment, level, model, loader))
    losses, errors = [point.loss for point in points], [1 - point.accuracy for point in points]
    return {
        "distance": distance,
        "line_loss": losses,
        "line_accuracy": [point.accuracy for point in points],
        "loss_barrier": _barrier(losses),
        "error_barrier": _barrier(errors),
    }


def _distance(first: Tensor, second: Tensor) -> float:
    precise = torch.promote_types(first.dtype, torch.float64)
    return torch.linalg.vector_norm(second.to(precise) - first.to(precise)).item()


def _between(first: Tensor, second: Tensor, share: float) -> Tensor:
    return torch.lerp(first, second, share) if first.is_floating_point() or first.is_complex() else first


def _barrier(heights: list[float]) -> float:
    if any(map(math.isnan, heights)):
        return math.nan
    return max(heights) - (heights[0] + heights[-1]) / 2


def _measured(experiment: Experiment, level: int, model: nn.Module, loader: Any) -> Evaluation:
    generators = (*loader_generators(loader), *loader_generators(experiment.loaders.train))
    with own_random_state(experiment.device, generators), forward_precision(experiment.precision, experiment.device):
        seed_loader(loader, experiment.training_seeds.stream("noise", experiment.replicate, level))
        _take_statistics(model, _some_batches(experiment, level))
        return evaluate(model, experiment.criterion, loader)


@torch.no_grad()
def _take_statistics(model: nn.Module, batches: Iterable[tuple[Any, Tensor]]) -> None:
    """Make the running statistics of BatchNorm those of ``batches``; the network is in training mode then.

    ``torch.optim.swa_utils.update_bn`` would also reset those that the network keeps as they are while it trains.
    """
    model.train()
    taking = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for module in taking:
        module.reset_running_stats()
        module.momentum = None  # all batches count the same
    if taking:
        for inputs, _ in batches:
            model(inputs)


def _some_batches(experiment: Experiment, level: int) -> Iterator[tuple[Any, Tensor]]:
    batches = experiment.batches(level)
    for _ in range(min(STATISTICS_BATCHES, batches.per_epoch)):
        yield batches.next()
