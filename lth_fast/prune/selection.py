"""Which survivors go: exactly k of them, those with the lowest scores."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lth_fast._survivors import count_kept
from lth_fast.ops.magnitude_threshold import MAGNITUDE_DTYPES, magnitude_threshold, prune_by_magnitude


def prune_lowest(scores: Sequence[Tensor], k: int, masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """Prune exactly the ``k`` survivors with the lowest scores among all tensors together.

    Among equal scores the one in the earlier tensor, and there at the lower flat index, goes first; ``-0.0`` equals
    ``0.0``. The tensors are never joined: besides the masks it returns, it takes a few bytes per score where scores are
    negative, and what :func:`lth_fast.ops.prune_by_magnitude` takes where none is.

    Args:
        scores: At least one tensor of finite numbers of either sign, all of one dtype (float32, float64, bfloat16 or
            float16) and on one device.
        k: Number of survivors to prune, 0 to the number of survivors.
        masks: One entry per tensor: bool of its shape, ``True`` for the survivors so far, or ``None`` where all are.

    Returns:
        The new masks, contiguous bool tensors of the scores' shapes.

    Raises:
        ValueError: ``k`` is out of range, ``scores`` is empty or on the meta device, or a survivor's score is NaN or
            infinite; the message has the place of the first such tensor.
        RuntimeError: The tensors are not as described.
    """
    scores = [score.detach() for score in scores]
    masks = [None] * len(scores) if masks is None else list(masks)
    _refuse_meta(scores)
    try:
        survivors = int(magnitude_threshold(scores, 0, masks).survivors)  # refuses what cannot be ranked
    except (ValueError, RuntimeError) as error:  # by the names of its own arguments
        raise type(error)(re.sub(r"\bweights\b", "scores", str(error).removeprefix("magnitude_threshold: "))) from None
    if not 0 <= k <= survivors:
        raise ValueError(f"k must be between 0 and the {survivors} survivors, got {k}")
    negative = [_both(score < 0, mask) for score, mask in zip(scores, masks, strict=True)]
    below_zero = sum(int(places.sum()) for places in negative)
    if below_zero == 0 or k == 0:
        return prune_by_magnitude(scores, k, masks)
    if k > below_zero:
        # From 0 upwards the order of the scores is the order of their magnitudes.
        others = [_both(~places, mask) for places, mask in zip(negative, masks, strict=True)]
        return prune_by_magnitude(scores, k - below_zero, others)
    # Below 0 it is the reverse, ties apart, so the magnitudes give the k-th lowest score, not the choice among equals.
    bound = -magnitude_threshold(scores, below_zero - k + 1, negative).threshold
    lower = [_both(score < bound, mask).contiguous() for score, mask in zip(scores, masks, strict=True)]
    left = k - sum(int(places.sum()) for places in lower)
    for score, mask, pruned in zip(scores, masks, lower, strict=True):
        ties = _both(score == bound, mask).reshape(-1).nonzero().squeeze(1)[:left]
        pruned.view(-1)[ties] = True
        left -= ties.numel()
    return [_both(~pruned, mask) for pruned, mask in zip(lower, masks, strict=True)]


def prune_smallest(scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """:func:`prune_lowest` for one tensor, of any real dtype and with infinite scores too.

    Args:
        scores: Tensor of any shape, e.g. the magnitudes of a weight. NaN is refused.
        k: Number of survivors to prune, 0 to the number of survivors.
        mask: Bool tensor of the same shape, ``True`` for the survivors so far; ``None``: all.

    Returns:
        The new mask, a bool tensor of the same shape.

    Raises:
        ValueError: ``k`` is out of range, ``mask`` has another shape, ``scores`` is on the meta device, or a survivor's
            score is NaN.
    """
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(f"mask must have the shape of scores {list(scores.shape)}, got {list(mask.shape)}")
    scores = scores.detach()
    _refuse_meta([scores])
    if scores.dtype in MAGNITUDE_DTYPES and bool(scores.isfinite().all()):
        return prune_lowest([scores], k, [mask])[0]
    return _prune_by_sorting(scores, k, mask)


def in_one_dtype(scores: Sequence[Tensor]) -> list[Tensor]:
    """``scores`` in the narrowest dtype that holds the numbers of all, so that they can be ranked together."""
    widest = functools.reduce(torch.promote_types, (score.dtype for score in scores))
    return [score.to(widest) for score in scores]


def by_name(error: ValueError, scores: Mapping[str, Tensor], masks: Sequence[Tensor | None]) -> ValueError:
    """``error`` about ``scores``, which has the place of a tensor in a list, with what the caller calls it instead."""
    for (name, values), mask in zip(scores.items(), masks, strict=True):
        if not bool((values if mask is None else values[mask]).isfinite().all()):
            return ValueError(f"{name} is NaN or infinite at a survivor; did the training diverge?")
    return error


def surviving(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Where ``weight`` survives: ``mask``, or everywhere without one."""
    return torch.ones_like(weight, dtype=torch.bool) if mask is None else mask


def count_survivors(weight: Tensor, mask: Tensor | None) -> int:
    """How many places of ``weight`` survive under ``mask``, all without one."""
    return weight.numel() if mask is None else count_kept(mask)


def _refuse_meta(scores: Sequence[Tensor]) -> None:
    if any(score.is_meta for score in scores):
        raise ValueError("scores: expected values to rank, got a tensor on the meta device")


def _both(places: Tensor, mask: Tensor | None) -> Tensor:
    return places if mask is None else places & mask


def _prune_by_sorting(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """For scores that are infinite or integers."""
    flat = scores.reshape(-1)
    places = torch.arange(flat.numel(), device=flat.device) if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    if not 0 <= k <= places.numel():
        raise ValueError(f"k must be between 0 and the {places.numel()} survivors, got {k}")
    candidates = flat[places]
    if candidates.isnan().any():
        raise ValueError("scores holds NaN among the survivors; did the training diverge?")
    # A stable sort keeps equal scores in index order; a selection (topk, kthvalue) promises nothing about ties.
    order = torch.sort(candidates, stable=True).indices[:k]
    result = torch.zeros_like(flat, dtype=torch.bool)
    result[places] = True
    result[places[order]] = False
    return result.reshape(scores.shape)
