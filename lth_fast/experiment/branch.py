"""Control arms: what a ticket is compared with. They take their masks from a finished ticket run.

``reinit`` keeps every level's mask and draws new weights, anew for each level, trained from step 1 (Frankle & Carbin
2019, section 2: "randomly reinitialize"). ``random_mask`` keeps the number of survivors of every layer and the weights
of the rewind point, and puts the survivors at random places (1903.01611, section 3: "random pruning").
To add a branch: its name here, its masks in :func:`branch_masks`, and its weights in ``_start`` of ``level.py`` if they
differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BRANCHES = ("ticket", "reinit", "random_mask")


def branch_masks(branch: str, ticket: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The masks of a level of a control arm.

    Args:
        branch: ``reinit`` or ``random_mask``.
        ticket: The masks of the same level of the ticket run, bool by parameter name.
        generator: CPU generator of this level's ``mask`` stream.
    """
    if branch == "reinit":
        return dict(ticket)
    return {name: _shuffled(mask, generator) for name, mask in ticket.items()}


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    places = torch.randperm(mask.numel(), generator=generator)
    return mask.reshape(-1)[places].reshape(mask.shape)
