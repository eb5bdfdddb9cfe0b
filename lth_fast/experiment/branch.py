"""Control arms: what a ticket is compared with. They take their masks from a finished run, its ``source``.

``reinit`` keeps every level's mask and draws new weights, anew for each level, trained from step 1 (Frankle & Carbin
2019, section 2: "randomly reinitialize"). ``random_mask`` keeps the number of survivors of every layer and the weights
of the rewind point, and puts the survivors at random places (1903.01611, section 3: "random pruning"). ``reorder``
keeps masks and weights and trains in another order of the data: the second copy of instability analysis (Frankle et al.
2020, 1912.05671), which :mod:`lth_fast.experiment.line` compares with the first. ``reorder:reinit`` and
``reorder:random_mask`` are copies of those arms.
To add a branch: its name here, its masks in :func:`branch_masks`, and its weights in ``_start`` of ``level.py`` if they
differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BRANCHES = ("ticket", "reinit", "random_mask", "reorder", "reorder:reinit", "reorder:random_mask")


def source_of(branch: str) -> str:
    """The branch of the finished run that a control arm takes its masks from."""
    return branch.partition(":")[2] or "ticket"


def reorders(branch: str) -> bool:
    """Whether ``branch`` is its source once more, in another order of the data."""
    return branch.partition(":")[0] == "reorder"


def branch_masks(branch: str, source: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The masks of a level of a control arm.

    Args:
        branch: One of :data:`BRANCHES` but ``ticket``.
        source: The masks of the same level of the run it takes them from, bool by parameter name.
        generator: CPU generator of this level's ``mask`` stream.
    """
    if branch == "random_mask":
        return {name: _shuffled(mask, generator) for name, mask in source.items()}
    return dict(source)


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    places = torch.randperm(mask.numel(), generator=generator)
    return mask.reshape(-1)[places].reshape(mask.shape)
