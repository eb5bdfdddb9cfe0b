"""From the weights at the end of one level to the masks of the next, through any pruning function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import masks as model_masks
from lth_fast.nn import set_masks


def prune_further(
    model: nn.Module,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    prune_net: Callable[[nn.Module], nn.Module | None],
    seed: int,
) -> dict[str, Tensor]:
    """Let ``prune_net`` prune a dense-form model once more and take over its masks.

    The model it sees holds the weights of ``state`` and, from the second time on, the history it needs to prune among
    survivors: the buffers and hooks of ``torch.nn.utils.prune`` if it uses those functions, else masked layers. Which
    of them it uses is found by one trial on a plain copy, so that nothing has to be remembered over a restart.

    Args:
        model: Plain module; a copy of it is pruned.
        state: State dict at the end of the level.
        masks: Masks so far, by parameter name; those that prune nothing may be missing.
        prune_net: Prunes in place or returns a pruned model.
        seed: For torch's global generator, which random pruning draws from.

    Returns:
        The masks by parameter name.

    Raises:
        ValueError: ``prune_net`` set no mask.
        TypeError: It returned something that is not a module.
    """
    history = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    candidate = _with_weights(model, state)
    if history and _stock_masks(_pruned(prune_net, _with_weights(model, state))):
        for name, mask in history.items():
            layer, _, parameter = name.rpartition(".")
            stock.custom_from_mask(candidate.get_submodule(layer), parameter, mask)
    else:
        set_masks(candidate, history)
    torch.manual_seed(seed)
    pruned = _pruned(prune_net, candidate)
    ours, theirs = model_masks(pruned), _stock_masks(pruned)
    if not ours and not theirs:
        raise ValueError(
            "prune_net set no mask: prune with lth_fast.prune or torch.nn.utils.prune (writing zeros into weights is "
            "not pruning, the next training would revive them)"
        )
    shared = {name: ours[name] & theirs[name] for name in ours.keys() & theirs.keys()}
    return {**ours, **theirs, **shared}


def _with_weights(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    candidate = copy.deepcopy(model)
    candidate.load_state_dict(state)
    return candidate


def _pruned(prune_net: Callable[[nn.Module], nn.Module | None], candidate: nn.Module) -> nn.Module:
    result = prune_net(candidate)
    pruned = candidate if result is None else result
    if not isinstance(pruned, nn.Module):
        raise TypeError(f"prune_net must return the pruned model or None, got {type(pruned).__name__}")
    return pruned


def _stock_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks that ``torch.nn.utils.prune`` left on ``model``, bool, by the plain parameter's name."""
    found = {}
    for name, layer in model.named_modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, stock.BasePruningMethod):
                parameter = hook._tensor_name
                full = f"{name}.{parameter}" if name else parameter
                found[full] = getattr(layer, f"{parameter}_mask").detach().bool()
    return found
