"""Parameters as an optimizer meets them in training, for the benchmarks of the optimizer steps."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lth_fast.nn import set_masks
from lth_fast.prune import prunable

MODELS = {
    "lenet": lambda: nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)),
    "linear_4608x512": lambda: nn.Sequential(nn.Linear(4608, 512)),
}


def at_work(name: str, density: float) -> tuple[nn.Module, nn.Module]:
    """A model under random masks and the same one without masks but with its zeros; both hold the same gradients."""
    torch.manual_seed(0)
    plain = MODELS[name]()
    names = prunable(plain)
    masked = copy.deepcopy(plain)
    if density < 1:
        set_masks(masked, {name: torch.rand(names[name].weight.shape) < density for name in names})
    plain.load_state_dict(masked.state_dict())
    for ours, theirs in zip(masked.parameters(), plain.parameters(), strict=True):
        theirs.grad = torch.randn_like(ours) * (ours != 0)
        ours.grad = theirs.grad.clone()
    return masked, plain
