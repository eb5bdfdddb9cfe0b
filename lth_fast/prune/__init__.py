"""Pruning: which weights go. Works on plain models; pruned layers become masked layers in place."""

from lth_fast.prune.functions import (
    custom_from_mask,
    global_unstructured,
    is_pruned,
    l1_unstructured,
    random_unstructured,
    remove,
)
from lth_fast.prune.layers import fetch_layers, prunable, sparsity
from lth_fast.prune.magnitude import prune_smallest
from lth_fast.prune.model import prune_all, prune_conv, prune_conv_globally, prune_fc

__all__ = [
    "custom_from_mask",
    "fetch_layers",
    "global_unstructured",
    "is_pruned",
    "l1_unstructured",
    "prunable",
    "prune_all",
    "prune_conv",
    "prune_conv_globally",
    "prune_fc",
    "prune_smallest",
    "random_unstructured",
    "remove",
    "sparsity",
]
