"""Masks where several processes train copies of one model (``torch.distributed``)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from lth_fast.nn.attributes import Model
from lth_fast.nn.model import masks, set_masks
from lth_fast.ops import pack_mask, unpack_mask


def broadcast_masks(model: Model) -> Model:
    """Give every process the masks of rank 0. A collective call where there is a process group, else nothing happens.

    :func:`~lth_fast.nn.convert` and the functions of :mod:`lth_fast.prune` that prune a whole model call it, so that
    masks that differ in a tie or by chance cannot pull the copies apart. It costs one bit per weight, once per mask.

    Raises:
        ValueError: The copies do not carry masks on the same parameters.
    """
    if not _several_processes():
        return model
    own = masks(model)
    names = sorted(own)
    if from_first(names) != names:
        raise ValueError("model: expected masks on the same parameters in every process, as rank 0 has them")
    first = {}
    for name in names:
        bits = pack_mask(own[name])
        if dist.get_backend() == "nccl":
            bits = bits.cuda()
        dist.broadcast(bits, src=0)
        first[name] = unpack_mask(bits, own[name].shape).to(own[name].device)
    return set_masks(model, {name: mask for name, mask in first.items() if not torch.equal(mask, own[name])})


def from_first(value: Any) -> Any:
    """Rank 0's ``value``, in every process."""
    if not _several_processes():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
