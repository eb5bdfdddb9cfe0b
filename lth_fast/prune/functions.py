"""The pruning functions of ``torch.nn.utils.prune``, by name and arguments, without its hooks.

A layer that is pruned becomes a masked layer in place and keeps its parameter. Repeated calls prune among survivors, as
stock's ``PruningContainer`` does. One seed gives the masks that stock draws.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedLayer, SparseLayer, masks, restore, set_masks, share_masks
from lth_fast.nn.attributes import Model
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.model import masked_for_a_while, parameter_names
from lth_fast.ops import prune_by_magnitude, unpack_mask
from lth_fast.prune.layers import LAZY, held_parameter
from lth_fast.prune.selection import by_name, count_survivors, in_one_dtype, prune_lowest, surviving


def identity(module: Model, name: str) -> Model:
    """Put a mask on the parameter ``name`` of ``module`` that prunes nothing more than is pruned already."""
    weight, before = parameter_and_mask(module, name)
    set_masks(module, {name: surviving(weight, before)})
    return module


def l1_unstructured(module: Model, name: str, amount: float, importance_scores: Tensor | None = None) -> Model:
    """Prune the surviving weights of ``module`` that have the smallest magnitude; ties fall to the lowest index.

    Args:
        module: Any module; the weight of an ``nn.Linear`` or ``nn.Conv2d`` makes it a masked layer, any other parameter
            is masked through ``torch.nn.utils.parametrize`` (see :func:`lth_fast.nn.set_masks`).
        name: Name of the parameter, e.g. ``"weight"``.
        amount: Share of the survivors in [0, 1] if a float (rounded to the nearest count, halves to even, as stock
            does), their number if an int.
        importance_scores: Tensor of the weight's shape whose magnitudes to rank by, instead of the weight's own. An
            infinite one counts as the largest number of its dtype.

    Returns:
        ``module``.

    Raises:
        ValueError: ``amount`` is out of range, a score is NaN, a weight that is ranked by is infinite or on the meta
            device, or the module has no such parameter or carries ``torch.nn.utils.prune`` hooks.
        TypeError: The parameter cannot carry a mask (see :func:`lth_fast.nn.set_masks`), as in a sparse layer:
            ``lth_fast.nn.convert(model, form="masked")`` makes it a masked one.
    """
    weight, mask = parameter_and_mask(module, name)
    scores = scores_to_rank(weight, importance_scores, "importance_scores")
    k = count_to_prune(amount, count_survivors(weight, mask))
    called = f"name: {name!r} of this {type(module).__name__}" if importance_scores is None else "importance_scores"
    (kept,) = _without_smallest({called: scores}, k, [mask])
    set_masks(module, {name: kept})
    return module


def random_unstructured(module: Model, name: str, amount: float) -> Model:
    """Prune surviving weights of ``module`` at random, drawn from torch's global generator.

    Arguments and errors are those of :func:`l1_unstructured`.
    """
    weight, mask = parameter_and_mask(module, name)
    survivors = count_survivors(weight, mask)
    k = count_to_prune(amount, survivors)
    kept = surviving(weight, mask)
    if k:
        # As stock: one number per survivor, the highest go.
        draws = torch.rand(survivors, dtype=weight.dtype, device=weight.device)
        scores = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device).masked_scatter(kept, -draws)
        (kept,) = prune_lowest([scores], k, [mask])
    set_masks(module, {name: kept})
    return module


def custom_from_mask(module: Model, name: str, mask: Tensor) -> Model:
    """Prune where ``mask`` (bool, or zeros and ones, of the parameter's shape) is 0, beside what is pruned already."""
    weight, before = parameter_and_mask(module, name)
    if mask.shape != weight.shape:
        raise ValueError(f"mask must have the shape of {name} {list(weight.shape)}, got {list(mask.shape)}")
    wanted = mask.to(weight.device) != 0
    set_masks(module, {name: wanted if before is None else wanted & before})
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: type[stock.BasePruningMethod],
    importance_scores: Mapping[tuple[nn.Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prune several parameters with one threshold over all of their survivors.

    Args:
        parameters: ``(module, name)`` pairs, as :func:`~lth_fast.prune.fetch_layers` gives them. Pairs of one shared
            Parameter count once, with the scores of the first. Sparse layers become masked ones with new Parameters:
            convert and make the optimizer afterwards.
        pruning_method: A class of ``torch.nn.utils.prune`` that prunes single weights (``L1Unstructured``,
            ``RandomUnstructured``, or one of your own). For ``L1Unstructured`` ties fall to the lowest
            (parameter, index); others are asked for their mask.
        importance_scores: ``(module, name)`` → tensor to rank by instead of the parameter.
        kwargs: For ``pruning_method``: ``amount``, a share of all survivors in [0, 1] or a count.

    Raises:
        TypeError: ``pruning_method`` does not prune single weights, ``amount`` is missing, or a parameter cannot carry
            a mask (see :func:`lth_fast.nn.set_masks`).
        ValueError: As :func:`l1_unstructured`.
    """
    given = list(parameters)
    if not given:
        raise ValueError("parameters: expected (module, name) pairs, got none")
    if getattr(pruning_method, "PRUNING_TYPE", None) != "unstructured":
        raise TypeError(f"pruning_method: expected one that prunes single weights, got {pruning_method.__name__}")
    # One model of them all: masks are shared, checked and set together, or not at all.
    model = nn.ModuleList(dict.fromkeys(module for module, _ in given))
    with masked_for_a_while(model):
        sharing: dict[int, list[tuple[nn.Module, str]]] = {}
        for module, name in given:
            sharing.setdefault(id(held_parameter(module, name)), []).append((module, name))
        pairs = [same[0] for same in sharing.values()]
        for pair in pairs:
            parameter_and_mask(*pair)  # refuses what it must before masks are shared
        share_masks(model)
        found = [parameter_and_mask(*pair) for pair in pairs]
        before = [mask for _, mask in found]
        instead = dict(importance_scores or {})
        scores = [
            scores_to_rank(weight, instead.get(pair), f"importance_scores[{pair[1]!r}]")
            for pair, (weight, _) in zip(pairs, found, strict=True)
        ]
        if pruning_method is stock.L1Unstructured:
            k = count_to_prune(_amount(**kwargs), sum(count_survivors(weight, mask) for weight, mask in found))
            called = [
                f"importance_scores[{pair[1]!r}] of parameters[{given.index(pair)}]"
                if pair in instead
                else f"parameters[{given.index(pair)}]: {pair[1]!r} of this {type(pair[0]).__name__}"
                for pair in pairs
            ]
            after = _without_smallest(dict(zip(called, in_one_dtype(scores), strict=True)), k, before)
        else:
            after = _masks_of_method(pruning_method(**kwargs), scores, before)
        names = {module: name for name, module in model.named_modules()}
        set_masks(model, {f"{names[module]}.{name}": mask for (module, name), mask in zip(pairs, after, strict=True)})


def _without_smallest(scores: Mapping[str, Tensor], k: int, masks: list[Tensor | None]) -> list[Tensor]:
    """:func:`prune_by_magnitude` of ``scores``, each by what messages call it."""
    try:
        return prune_by_magnitude(list(scores.values()), k, masks)
    except ValueError as error:
        raise by_name(error, scores, masks) from None


def _amount(**kwargs: Any) -> Any:
    if kwargs.keys() != {"amount"}:
        given = ", ".join(kwargs) or "none"
        raise TypeError(f"global_unstructured: expected the argument amount for L1Unstructured, got {given}")
    return kwargs["amount"]


def _masks_of_method(
    method: stock.BasePruningMethod, scores: list[Tensor], before: list[Tensor | None]
) -> list[Tensor]:
    """The masks that a pruning class gives; it wants to see the survivors of all tensors as one vector."""
    kept = list(map(surviving, scores, before))
    candidates = torch.cat([score[mask] for score, mask in zip(scores, kept, strict=True)])
    chosen = method.compute_mask(candidates, torch.ones_like(candidates)) != 0
    parts = chosen.split([int(mask.sum()) for mask in kept])
    return [mask.masked_scatter(mask, part) for mask, part in zip(kept, parts, strict=True)]


def is_pruned(module: nn.Module) -> bool:
    """Whether ``module`` or a module inside it carries a mask, ours or that of ``torch.nn.utils.prune``."""
    return bool(masks(module)) or stock.is_pruned(module)


def remove(module: Model, name: str) -> Model:
    """Make the pruning of ``module`` permanent: the mask goes, zeros stay in the parameter.

    Where modules inside ``module`` share the parameter, it goes from all of them.

    Raises:
        ValueError: The parameter is not pruned.
    """
    before = masks(module)
    if name not in before:
        raise ValueError(f"name: parameter {name!r} of this {type(module).__name__} is not pruned")
    sharing = next((names for names in parameter_names(module).values() if name in names), [name])
    return set_masks(restore(module), {other: mask for other, mask in before.items() if other not in sharing})


def count_to_prune(amount: float, units: int, unit: str = "survivors") -> int:
    """Number of ``units`` that ``amount`` (a share in [0, 1], or a count) prunes, rounded as stock does."""
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise TypeError(f"amount must be a share in [0, 1] or a number of weights, got {amount!r}")
    if isinstance(amount, numbers.Integral):
        if not 0 <= amount <= units:
            raise ValueError(f"amount must be between 0 and the {units} {unit}, got {amount}")
        return int(amount)
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"amount must be a share in [0, 1] or a number of weights, got {amount}")
    return round(float(amount) * units)


def parameter_and_mask(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """The values of a parameter that stock has not pruned, zero where pruned, and its mask if it has one.

    That of a parameter which other modules share is what their masks keep, too.

    Raises:
        ValueError: There is no such parameter, it has no values (on the meta device, of a lazy layer), or
            ``torch.nn.utils.prune`` has pruned the module.
        TypeError: It is the weight of a sparse layer.
    """
    if stock.is_pruned(module):
        raise ValueError(
            f"module: this {type(module).__name__} is pruned by torch.nn.utils.prune; take it over with "
            "lth_fast.prune.from_torch_prune, or keep using torch's functions"
        )
    if isinstance(module, SparseLayer) and name == "weight":
        raise TypeError(
            f"module: expected a layer that can take a mask, got a {type(module).__name__}; "
            'lth_fast.nn.convert(model, form="masked") makes it one'
        )
    parameter = held_parameter(module, name)
    if parameter is None:
        raise ValueError(f"name: this {type(module).__name__} has no parameter {name!r}")
    weight: Tensor = getattr(module, name)
    if name == "weight" and isinstance(module, MaskedLayer):
        weight = module.masked_weight()
    if is_lazy(weight):
        raise ValueError(f"name: expected a parameter with a shape, got {name!r} {LAZY}")
    if weight.is_meta:
        raise ValueError(f"name: expected a parameter with values, got {name!r} on the meta device")
    own = masks(module).get(name)
    shared = [unpack_mask(holder.mask_bits, weight.shape) for holder in mask_changes.holders_of(parameter, anew=True)]
    found = shared if own is None else [own, *shared]
    return weight.detach(), functools.reduce(torch.logical_and, found) if found else None


def scores_to_rank(weight: Tensor, given: Tensor | None, argument: str) -> Tensor:
    """The weight itself, or the importance scores ``given`` instead of it as the selection takes them."""
    if given is None:
        return weight
    if given.shape != weight.shape:
        raise ValueError(f"{argument} must have the parameter's shape {list(weight.shape)}, got {list(given.shape)}")
    scores = given.detach() if given.is_floating_point() else given.detach().double()
    largest = torch.finfo(scores.dtype).max
    return scores.clamp(-largest, largest)  # NaN stays, and is refused
