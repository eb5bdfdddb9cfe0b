"""One Parameter, one mask: what the modules that hold a mask on the same weight do together.

A weight that modules share (a tied embedding and decoder) has one mask, whichever of them it is set on. Most weights
have one module, which then acts alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lth_fast.nn.mask_changes import Holder, mask_changes
from lth_fast.ops import masked_apply_, pack_mask

# Where a holder keeps its packed mask while its weight is on the meta device.
ASIDE = "_mask_aside"


def take_mask(holder: Holder, bits: Tensor) -> None:
    """Give the packed mask to ``holder`` and to all that share its weight; zero weight and gradient where it prunes."""
    sharers = _sharers(holder, anew=True)
    for sharer in sharers:  # all of them before it is applied: an old mask must not prune what the new one keeps
        sharer.hold_mask(bits)
        vars(sharer).pop(ASIDE, None)
    apply_mask(holder)
    parameter = holder.masked_parameter
    if parameter is not None and parameter.grad is not None:
        masked_apply_(parameter.grad, bits)
    for sharer in sharers:
        mask_changes.note(sharer)


def move_mask(holder: Holder, bits: Tensor, device: torch.device) -> None:
    """Let ``holder`` have its packed mask ``bits`` on ``device``.

    One that went to the meta device comes back from there; one that was made there keeps every weight.
    """
    with torch.inference_mode(False):
        bits = vars(holder).pop(ASIDE, bits)
        if device.type == "meta" and not bits.is_meta:
            vars(holder)[ASIDE] = bits
        elif device.type != "meta" and bits.is_meta:
            bits = pack_mask(torch.ones(holder.weight.shape, dtype=torch.bool, device=device))
        holder.hold_mask(bits.to(device))


def apply_mask(holder: Holder) -> None:
    """Zero the pruned weights now, and let all that share the weight know."""
    parameter = holder.masked_parameter
    if parameter is None:
        return
    sharers = _sharers(holder)
    # They differ where a user has tied layers that were masked before; then a weight survives where all keep it.
    for bits in {id(sharer.mask_bits): sharer.mask_bits for sharer in sharers}.values():
        masked_apply_(parameter, bits)
    # Which may have cast the weight as it was, and kept the copy.
    if not parameter.is_meta and torch.is_autocast_enabled(parameter.device.type):
        torch.clear_autocast_cache()
    # Otherwise the next one's forward would write to a weight that the first one's backward needs as it was.
    for sharer in sharers:
        sharer.trust_weight()


def _sharers(holder: Holder, anew: bool = False) -> list[Holder]:
    parameter = holder.masked_parameter
    if parameter is None:
        return [holder]
    return [holder, *(other for other in mask_changes.holders_of(parameter, anew) if other is not holder)]
