"""From the weights at the end of one level to the masks of the next, through any pruning function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast._survivors import count_kept, keeps_everything
from lth_fast.experiment.copies import copy_with
from lth_fast.nn import masks as model_masks
from lth_fast.nn import set_masks
from lth_fast.prune.layers import pruned_by_stock


class PruneStep:
    """Lets a pruning function prune a dense-form model once more, and takes over its masks.

    The model that the function sees holds the weights at the end of the level and, from the second time on, the history
    it needs to prune among survivors: the buffers and hooks of ``torch.nn.utils.prune`` if it uses those functions,
    else masked layers. Which of them it uses shows the first time. Where that was before a restart, a trial on a plain
    copy tells.

    Args:
        prune_net: Prunes in place or returns a pruned model.
    """

    def __init__(self, prune_net: Callable[[nn.Module], nn.Module | None]) -> None:
        self._prune_net = prune_net
        self._uses_stock: bool | None = None

    def __call__(
        self, model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int
    ) -> dict[str, Tensor]:
        """Prune a copy of ``model`` further.

        Args:
            model: Plain module; a copy of it is pruned.
            state: State dict at the end of the level.
            masks: Masks so far, by parameter name.
            seed: For torch's global generator, which random pruning draws from.

        Returns:
            The new masks by parameter name; those of parameters that were not pruned stay. A shared parameter has one.

        Raises:
            ValueError: ``prune_net`` set no mask.
            TypeError: It returned something that is not a module.
        """
        history = {name: mask for name, mask in masks.items() if not keeps_everything(mask)}
        candidate = copy_with(model, state)
        if history and self._uses_stock is None:
            self._uses_stock = bool(pruned_by_stock(self._prune(copy_with(model, state), seed)))
        if self._uses_stock:
            for name, mask in history.items():
                layer, _, parameter = name.rpartition(".")
                stock.custom_from_mask(candidate.get_submodule(layer), parameter, mask)
        else:
            set_masks(candidate, history)
        pruned = self._prune(candidate, seed)
        ours, theirs = model_masks(pruned), {name: mask for name, _, _, mask in pruned_by_stock(pruned)}
        if not ours and not theirs:
            raise ValueError(
                "prune_net set no mask: prune with lth_fast.prune or torch.nn.utils.prune (writing zeros into weights "
                "is not pruning, the next training would revive them)"
            )
        self._uses_stock = bool(theirs)
        shared = {name: ours[name] & theirs[name] for name in ours.keys() & theirs.keys()}
        found = {**ours, **theirs, **shared}
        for name, mask in history.items():
            revived = count_kept(found[name] > mask) if name in found else 0
            if revived:
                warnings.warn(
                    f"prune_net: expected masks that prune further, got {revived} weights of {name} back that were "
                    "pruned before; they are trained again",
                    stacklevel=2,
                )
        return _once(model, {**masks, **found})

    def _prune(self, candidate: nn.Module, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        result = self._prune_net(candidate)
        pruned = candidate if result is None else result
        if not isinstance(pruned, nn.Module):
            raise TypeError(f"prune_net: expected it to return the pruned model or None, got {type(pruned).__name__}")
        return pruned


def _once(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``masks`` with one for every parameter, under its first name in there: what any of its names prunes is pruned."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for name, mask in masks.items():
        first = names.setdefault(id(parameters.get(name, name)), name)
        found[first] = found.get(first, mask) & mask
    return found
