"""Pruning: which weights go. Works on plain models; pruned layers become masked layers in place."""

from lth_fast.prune.functions import l1_unstructured, prune_all
from lth_fast.prune.layers import fetch_layers, prunable, sparsity
from lth_fast.prune.magnitude import prune_smallest

__all__ = ["fetch_layers", "l1_unstructured", "prunable", "prune_all", "prune_smallest", "sparsity"]
