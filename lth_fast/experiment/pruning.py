"""From the flags on pruning to the function that prunes a model once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_fast.models import output_layer, shortcut_layers
from lth_fast.nn import masks
from lth_fast.prune import Gradients, prune_by_score
from lth_fast.prune.layers import prunable, prunable_names

ROLES = ("output", "shortcuts")
COUNTS = ("nearest", "openlth")


@dataclass(frozen=True)
class Evidence:
    """What scores may ask for beside the weights.

    Attributes:
        initial: Weights before any training, by parameter name.
        criterion: Mean loss of a batch from (outputs, labels).
        batch: A seed → a batch of training data.
    """

    initial: Mapping[str, Tensor]
    criterion: Callable[[Any, Any], Tensor]
    batch: Callable[[int], tuple[Tensor, Tensor]]


def pruning_function(
    scope: str,
    prune_rate: float,
    fc_rate: float | None,
    whole: Collection[str],
    bias: bool,
    score: str = "magnitude",
    distribution: str = "uniform",
    evidence: Evidence | None = None,
    count: str = "nearest",
) -> Callable[[nn.Module], nn.Module]:
    """The function that prunes a level's model for the next one; what it draws comes from torch's global generator.

    Args:
        scope: ``layerwise``, or ``global``: one threshold over all layers.
        prune_rate: Share of the survivors to prune.
        fc_rate: The same for Linear layers, ``None``: as ``prune_rate``. Layer-wise and uniform, the output layer gets
            half of the rate of its kind (1803.03635, figure 2); globally, two rates mean two thresholds.
        whole: Roles of layers that are not pruned: ``output``, ``shortcuts``.
        bias: Prune the biases of the pruned layers as well.
        score: A name of :data:`lth_fast.prune.SCORES`.
        distribution: A name of :data:`lth_fast.prune.DISTRIBUTIONS`.
        evidence: For scores that look at more than the weights.
        count: ``openlth``: globally and by one rate, as many weights go as in OpenLTH; else the nearest to the rate.
    """
    linear_rate = prune_rate if fc_rate is None else fc_rate
    halved = scope == "layerwise" and distribution == "uniform"

    def prune(model: nn.Module) -> nn.Module:
        rates = _rates(model, prune_rate, linear_rate, whole, bias, halved)
        if count == "openlth":
            rates = _openlth_rates(model, rates, bias)
        initial, gradients = None, None
        if evidence is not None:
            initial, draw = evidence.initial, evidence.batch
            gradients = Gradients(model, evidence.criterion, lambda: draw(int(torch.randint(2**62, ()))))
        return prune_by_score(model, rates, score, scope, distribution, initial=initial, gradients=gradients)

    return prune


def pruned_names(model: nn.Module, whole: Collection[str], bias: bool) -> list[str]:
    """The parameters that are pruned, those of the layers in the roles ``whole`` left out."""
    kept = set(shortcut_layers(model)) if "shortcuts" in whole else set()
    if "output" in whole:
        kept.add(output_layer(model))
    return [name for name in prunable_names(model, bias) if name.rpartition(".")[0] not in kept]


def _rates(
    model: nn.Module, prune_rate: float, linear_rate: float, whole: Collection[str], bias: bool, halved: bool
) -> dict[str, float]:
    """The rate of every parameter that is pruned, ``halved`` in the output layer if so asked."""
    output = output_layer(model)
    layers = {name.rpartition(".")[0]: layer for name, layer in prunable(model).items()}
    rates = {}
    for name in pruned_names(model, whole, bias):
        layer = name.rpartition(".")[0]
        rate = linear_rate if isinstance(layers[layer], nn.Linear) else prune_rate
        rates[name] = float(rate / 2 if halved and layer == output else rate)
    return rates


def _openlth_rates(model: nn.Module, rates: dict[str, float], bias: bool) -> dict[str, float]:
    """``rates``, all of them one, such that one threshold prunes as many weights as OpenLTH's ``sparse_global`` does.

    Its rate is a share of all survivors, those of layers that are kept whole too, and rounded up; the weight at the
    threshold goes as well. It ends in an IndexError where so many are not left; here all that are left go.
    """
    before = masks(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    left = {
        name: int(before[name].sum()) if name in before else parameters[name].numel()
        for name in prunable_names(model, bias)
    }
    available = sum(left[name] for name in rates)
    wanted = math.ceil(max(rates.values(), default=0.0) * sum(left.values())) + 1
    return dict.fromkeys(rates, min(wanted, available) / max(1, available))
