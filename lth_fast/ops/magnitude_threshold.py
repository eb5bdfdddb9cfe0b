"""Global magnitude pruning: the k-th smallest magnitude of a list of tensors, and the masks that prune the k smallest.

Magnitudes are compared exactly as they are stored: denormals count, and ``-0.0`` equals ``0.0``. Of equal magnitudes
the one in the earlier tensor, and there at the lower flat (row-major) index, counts as the smaller. Neither the memory
layout nor the instruction set nor the number of threads nor the device shows in the result.

With CUDA kernels in the build, nothing waits for the device before the end of a call, where the errors are raised, and
calls can be captured in a CUDA graph. A replay raises nothing: where it should, nothing is pruned and the threshold is
NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lth_fast.ops.library import refuse_meta_among_others, serve_cuda

MAGNITUDE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class MagnitudeThreshold(NamedTuple):
    """The k-th smallest magnitude, as three tensors of shape ``[]`` on the weights' device."""

    threshold: Tensor
    """The k-th smallest magnitude among the survivors, in the weights' dtype; 0 when ``k`` is 0."""
    tie_budget: Tensor
    """int64: how many survivors of exactly this magnitude belong to the k smallest; 0 when ``k`` is 0."""
    survivors: Tensor
    """int64: number of weights the masks keep."""


def magnitude_threshold(
    weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None] | None = None
) -> MagnitudeThreshold:
    """Find the k-th smallest magnitude among the survivors of all tensors together.

    The k smallest are the survivors below ``threshold`` and the first ``tie_budget`` of those that equal it.

    Args:
        weights: At least one tensor, of any shapes and memory layouts, on one device and of one dtype: float32,
            float64, bfloat16 or float16.
        k: 0 to the number of survivors.
        masks: One entry per weight: a bool tensor of its shape, ``True`` for survivors, or ``None`` where all survive.
            ``None`` in place of the list: every weight survives.

    Raises:
        ValueError: ``k`` is out of range, ``weights`` is empty, or a survivor is NaN or infinite; the message names the
            first such tensor.
        RuntimeError: The tensors are not as described.
    """
    with torch.no_grad():  # once, where detaching tensor by tensor takes longer than the search among small ones
        return MagnitudeThreshold(*torch.ops.lth_fast.magnitude_threshold(*_arguments(weights, k, masks)))


def prune_by_magnitude(weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """Prune exactly the ``k`` survivors of smallest magnitude among all tensors together.

    Takes the arguments of :func:`magnitude_threshold` and raises the same errors. Reads large models once, small ones
    twice, and needs less than 3 % of their bytes besides the masks it returns (up to a few hundred KiB for small
    weights).

    Returns:
        The new masks: for every weight a contiguous bool tensor of its shape, ``True`` for the remaining survivors.
    """
    with torch.no_grad():
        return torch.ops.lth_fast.prune_by_magnitude(*_arguments(weights, k, masks))


def _arguments(
    weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None] | None
) -> tuple[list[Tensor], int, list[Tensor | None]]:
    if not weights:
        raise ValueError("weights must hold at least one tensor, got none")
    return list(weights), k, [None] * len(weights) if masks is None else list(masks)


def reference(weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> MagnitudeThreshold:
    """Definition of :func:`magnitude_threshold`."""
    magnitudes = _surviving_magnitudes("magnitude_threshold", weights, k, masks)
    count = torch.zeros((), dtype=torch.int64, device=magnitudes.device)
    survivors = count + magnitudes.numel()
    if k == 0:
        return MagnitudeThreshold(magnitudes.new_zeros(()), count, survivors)
    threshold = magnitudes.sort().values[k - 1]
    return MagnitudeThreshold(threshold, k - (magnitudes < threshold).sum(), survivors)


def reference_prune_by_magnitude(weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Definition of :func:`prune_by_magnitude`."""
    magnitudes = _surviving_magnitudes("prune_by_magnitude", weights, k, masks)
    # Stable: equal magnitudes stay in the order of the tensors and of their flat indices.
    smallest = magnitudes.sort(stable=True).indices[:k]
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    kept[smallest] = False
    new_masks = []
    for weight, mask in zip(weights, masks, strict=True):
        survivors = _survivors(weight, mask)
        of_this_weight, kept = kept.tensor_split([int(survivors.sum())])
        new_masks.append(survivors.masked_scatter(survivors, of_this_weight))
    return new_masks


def _survivors(weight: Tensor, mask: Tensor | None) -> Tensor:
    everything = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return everything if mask is None else everything & mask


def _surviving_magnitudes(function: str, weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> Tensor:
    """The magnitudes of all survivors in order, as one tensor, with the native op's checks."""
    if len(masks) != len(weights):
        raise RuntimeError(f"{function}: masks must hold one entry per weight ({len(weights)}), got {len(masks)}")
    first = weights[0]
    magnitudes = []
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        if weight.dtype not in MAGNITUDE_DTYPES:
            raise RuntimeError(
                f"{function}: weights[{i}] must be float32, float64, bfloat16 or float16, got {weight.dtype}"
            )
        if (weight.dtype, weight.device) != (first.dtype, first.device):
            raise RuntimeError(
                f"{function}: weights must have one dtype and device, got {first.dtype} on {first.device} in "
                f"weights[0] and {weight.dtype} on {weight.device} in weights[{i}]"
            )
        if mask is not None and (mask.dtype, mask.shape, mask.device) != (torch.bool, weight.shape, weight.device):
            raise RuntimeError(
                f"{function}: masks[{i}] must be a bool tensor with the shape {list(weight.shape)} and device of "
                f"weights[{i}], got {mask.dtype} {list(mask.shape)} on {mask.device}"
            )
        magnitude = weight.abs()[_survivors(weight, mask)]
        if not magnitude.isfinite().all():
            raise ValueError(
                f"{function}: weights[{i}] holds NaN or infinity among its survivors; did the training diverge?"
            )
        magnitudes.append(magnitude)
    joined = torch.cat(magnitudes)
    if not 0 <= k <= joined.numel():
        raise ValueError(f"{function}: k must be between 0 and the {joined.numel()} survivors, got {k}")
    return joined


serve_cuda("magnitude_threshold", reference)
serve_cuda("prune_by_magnitude", reference_prune_by_magnitude)


@torch.library.register_fake("lth_fast::magnitude_threshold")
def _(weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    refuse_meta_among_others("magnitude_threshold", weights, masks)
    first = weights[0]
    return first.new_empty(()), first.new_empty((), dtype=torch.int64), first.new_empty((), dtype=torch.int64)


@torch.library.register_fake("lth_fast::prune_by_magnitude")
def _(weights: Sequence[Tensor], k: int, masks: Sequence[Tensor | None]) -> list[Tensor]:
    refuse_meta_among_others("prune_by_magnitude", weights, masks)
    return [weight.new_empty(weight.shape, dtype=torch.bool) for weight in weights]
