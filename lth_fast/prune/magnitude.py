"""The k smallest surviving scores of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from lth_fast.ops.magnitude_threshold import MAGNITUDE_DTYPES, prune_by_magnitude


def prune_smallest(scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Prune exactly the ``k`` survivors with the lowest scores; among equal ones the lowest flat index goes first.

    Args:
        scores: Tensor of any shape, e.g. the magnitudes of a weight. NaN is refused.
        k: Number of survivors to prune, 0 to the number of survivors.
        mask: Bool tensor of the same shape, ``True`` for the survivors so far; ``None``: all.

    Returns:
        The new mask, a bool tensor of the same shape.

    Raises:
        ValueError: ``k`` is out of range, ``mask`` has another shape, or a survivor's score is NaN.
    """
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(f"mask must have the shape of scores {list(scores.shape)}, got {list(mask.shape)}")
    scores = scores.detach()
    if _are_magnitudes(scores):
        return prune_by_magnitude([scores], k, [mask])[0]
    return _prune_by_sorting(scores, k, mask)


def _are_magnitudes(scores: Tensor) -> bool:
    """Whether the order of the scores is the order of their magnitudes, and all are finite."""
    if scores.dtype not in MAGNITUDE_DTYPES or scores.numel() == 0:
        return False
    lowest, highest = scores.aminmax()  # both NaN if any is
    return bool((lowest >= 0) & highest.isfinite())


def _prune_by_sorting(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """For scores that may be negative, infinite or integers."""
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
