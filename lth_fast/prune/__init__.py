"""Pruning: which weights go. Works on plain models; pruned layers become masked layers in place.

The functions of ``torch.nn.utils.prune`` are all here. Its classes are not: ours are functions of a score. Where
``global_unstructured`` takes a class, it takes torch's (``torch.nn.utils.prune.L1Unstructured``, or a subclass of
``BasePruningMethod`` of your own).
"""

from lth_fast.prune.by_score import SCOPES, prune_by_score
from lth_fast.prune.distributions import DISTRIBUTIONS, erk_densities
from lth_fast.prune.functions import (
    custom_from_mask,
    global_unstructured,
    identity,
    is_pruned,
    l1_unstructured,
    random_unstructured,
    remove,
)
from lth_fast.prune.gradients import Gradients
from lth_fast.prune.layers import fetch_layers, prunable, sparsity
from lth_fast.prune.model import prune_all, prune_conv, prune_conv_globally, prune_fc
from lth_fast.prune.patterns import Blocks, NOfM
from lth_fast.prune.scores import SCORES, Weights
from lth_fast.prune.selection import prune_lowest, prune_smallest
from lth_fast.prune.structured import ln_structured, random_structured
from lth_fast.prune.takeover import from_openlth, from_torch_prune

__all__ = [
    "DISTRIBUTIONS",
    "SCOPES",
    "SCORES",
    "Blocks",
    "Gradients",
    "NOfM",
    "Weights",
    "custom_from_mask",
    "erk_densities",
    "fetch_layers",
    "from_openlth",
    "from_torch_prune",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "prunable",
    "prune_all",
    "prune_by_score",
    "prune_conv",
    "prune_conv_globally",
    "prune_fc",
    "prune_lowest",
    "prune_smallest",
    "random_structured",
    "random_unstructured",
    "remove",
    "sparsity",
]
