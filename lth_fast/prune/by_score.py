"""Pruning a model by a score, under one threshold or one per parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune as stock

from lth_fast.nn import broadcast_masks, dense_state, masks, set_masks, share_masks
from lth_fast.nn.attributes import Model
from lth_fast.nn.model import masked_for_a_while, parameter_names
from lth_fast.ops import prune_by_magnitude
from lth_fast.prune.distributions import DISTRIBUTIONS
from lth_fast.prune.gradients import Gradients
from lth_fast.prune.layers import LAZY, prunable, prunable_names
from lth_fast.prune.scores import SCORES, Weights
from lth_fast.prune.selection import by_name, count_survivors, in_one_dtype, prune_lowest

SCOPES = ("layerwise", "global")


def prune_by_score(
    model: Model,
    rates: float | Mapping[str, float],
    score: str = "magnitude",
    scope: str = "layerwise",
    distribution: str = "uniform",
    *,
    initial: Mapping[str, Tensor] | None = None,
    gradients: Gradients | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Prune the survivors of ``model`` that score lowest; among equal ones the lowest (parameter, flat index) go.

    Args:
        model: Any module; it is pruned in place, as by :func:`lth_fast.nn.set_masks`. Sparse layers become masked ones
            with new Parameters: convert and make the optimizer afterwards.
        rates: Share of the survivors to prune, 0 to 1, by parameter name in the order of ties; a number: for all
            weights of ``nn.Linear`` and ``nn.Conv2d``. Of the names of a shared parameter one counts.
        score: A name of :data:`~lth_fast.prune.scores.SCORES`.
        scope: ``layerwise``: every parameter loses what the distribution says. ``global``: parameters of the same rate
            share one threshold.
        distribution: A name of :data:`~lth_fast.prune.distributions.DISTRIBUTIONS`, for ``layerwise``.
        initial: Weights before any training, by parameter name, for ``magnitude_increase``.
        gradients: Derivatives for ``snip``, ``grasp`` and ``synflow``.
        generator: For ``random``.

    Returns:
        ``model``. Where a process group of ``torch.distributed`` has several processes, all have the masks of rank 0.

    Raises:
        ValueError: A name is unknown, there is nothing to prune, a rate is out of range, two names of one parameter
            have two rates, the score lacks what it needs, or it is NaN or infinite at a survivor.
        TypeError: A parameter cannot carry a mask (see :func:`lth_fast.nn.set_masks`).
    """
    for argument, given, known in (
        ("score", score, SCORES),
        ("scope", scope, SCOPES),
        ("distribution", distribution, DISTRIBUTIONS),
    ):
        if given not in known:
            raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {given!r}")
    if scope == "global" and distribution != "uniform":
        raise ValueError(f"distribution: expected uniform with the scope global, got {distribution!r}")
    if stock.is_pruned(model):
        raise ValueError("model: it is pruned by torch.nn.utils.prune; take it over with from_torch_prune first")
    rate_of = dict(rates) if isinstance(rates, Mapping) else dict.fromkeys(prunable_names(model), rates)
    if not rate_of and not isinstance(rates, Mapping):
        raise ValueError(f"model: {type(model).__name__} has no nn.Linear or nn.Conv2d to prune")
    for name, rate in rate_of.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rates: expected shares between 0 and 1, got {rate} for {name!r}")
    with masked_for_a_while(model):
        _keep_one_name(model, rate_of)
        _weights(model, rate_of)  # refuses what it must before masks are shared
        share_masks(model)
        before = masks(model)
        trained = _weights(model, rate_of)
        survivors = {name: count_survivors(trained[name], before.get(name)) for name in rate_of}
        if scope == "global":
            groups = [
                (names, round(rate * sum(survivors[name] for name in names)))
                for names, rate in _by_rate(rate_of).items()
            ]
        else:
            shapes = {name: weight.shape for name, weight in trained.items()}
            groups = [((name,), k) for name, k in DISTRIBUTIONS[distribution](shapes, survivors, rate_of).items()]

        select: Callable[..., list[Tensor]] = prune_lowest
        if score == "magnitude":  # the op takes the weights themselves
            scores, select = trained, prune_by_magnitude
        else:
            weights = Weights(trained, initial or {}, generator)
            scores = SCORES[score](weights, gradients or Gradients(model))
        after: dict[str, Tensor] = {}
        for names, k in groups:
            try:
                found = select(in_one_dtype([scores[name] for name in names]), k, [before.get(name) for name in names])
            except ValueError as error:
                called = {f"{score} of {name!r}": scores[name] for name in names}
                raise by_name(error, called, [before.get(name) for name in names]) from None
            after.update(zip(names, found, strict=True))
        return broadcast_masks(set_masks(model, after))


def _weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The parameters of these names, zero where pruned."""
    state = dense_state(model)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    found = {}
    for name in names:
        if name not in state and name in prunable(model):
            raise TypeError(f"rates: expected names of parameters, got {name!r}, which is computed")
        if name not in state or name in buffers:
            known = ", ".join(key for key in state if key not in buffers)
            raise ValueError(f"rates: the model has no parameter {name!r}; it has: {known}")
        if is_lazy(state[name]):
            raise ValueError(f"rates: expected parameters with a shape, got {name!r} {LAZY}")
        if state[name].is_meta:
            raise ValueError(f"rates: expected parameters with values, got {name!r} on the meta device")
        found[name] = state[name].detach()
    return found


def _keep_one_name(model: nn.Module, rates: dict[str, float]) -> None:
    """Drop all but the first name of a shared parameter, so that its weights are counted once."""
    for names in parameter_names(model).values():
        first, *others = [name for name in rates if name in names] or [""]
        for other in others:
            if rates.pop(other) != rates[first]:
                raise ValueError(f"rates: expected one rate for {first!r} and {other!r}, which share a weight, got two")


def _by_rate(rates: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    """Names of the same rate, in their order."""
    groups: dict[float, list[str]] = {}
    for name, rate in rates.items():
        groups.setdefault(rate, []).append(name)
    return {tuple(names): rate for rate, names in groups.items()}
