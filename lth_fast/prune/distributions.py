"""Distributions: how many weights each tensor loses when every tensor has a threshold of its own.

A distribution is a function of the tensors' shapes, their survivors and the rates wanted that returns the number to
prune by name. To add one: a function here and its line in :data:`DISTRIBUTIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
Distribution = Callable[[Shapes, Mapping[str, int], Mapping[str, float]], dict[str, int]]


def uniform(shapes: Shapes, survivors: Mapping[str, int], rates: Mapping[str, float]) -> dict[str, int]:
    """Each tensor loses its rate of its survivors, rounded to the nearest count."""
    return {name: round(rates[name] * survivors[name]) for name in shapes}


def erk(shapes: Shapes, survivors: Mapping[str, int], rates: Mapping[str, float]) -> dict[str, int]:
    """Erdős-Rényi-Kernel (Evci et al. 2020, RigL, 1911.11134, section 3).

    A tensor ``[outputs, inputs, height, width]`` keeps a density in proportion to the sum of its sizes over their
    product, at most 1; a vector counts as one of density 1. The number pruned in all is the one that ``rates`` ask for,
    rounded to the nearest count. A tensor with fewer survivors than its share already loses none, and the others make
    up for it.
    """
    total = sum(survivors.values())
    wanted = total - round(sum(rates[name] * survivors[name] for name in shapes))
    density = erk_densities(shapes, wanted / max(1, sum(math.prod(shape) for shape in shapes.values())))
    shares = {name: density[name] * math.prod(shape) for name, shape in shapes.items()}
    return {name: survivors[name] - kept for name, kept in _whole_numbers(shares, survivors, wanted).items()}


def erk_densities(shapes: Shapes, density: float) -> dict[str, float]:
    """The density of every tensor, 0 to 1, so that all of them together have ``density``.

    Args:
        shapes: Shape of every tensor, by name.
        density: Share of all weights kept, 0 to 1.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] if sizes[name] else 1.0 for name, shape in shapes.items()}
    whole: set[str] = set()  # tensors whose density would pass 1
    while True:
        rest = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
        divisor = sum(raw[name] * sizes[name] for name in shapes if name not in whole)
        scale = max(0.0, rest) / divisor if divisor else 0.0
        above = {name for name in shapes if name not in whole and scale * raw[name] > 1}
        if not above:
            return {name: 1.0 if name in whole else scale * raw[name] for name in shapes}
        whole |= above


def _whole_numbers(shares: Mapping[str, float], most: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers near ``shares``, none above its ``most``, that sum up to ``total``; large remainders first."""
    capped = {name: min(share, float(most[name])) for name, share in shares.items()}
    while True:  # what a full tensor cannot hold goes to the others in proportion
        lacking = total - sum(capped.values())
        room = {name for name in shares if capped[name] < most[name]}
        weight = sum(shares[name] for name in room)
        if lacking < 1e-6 * max(1, total) or not room or not weight:
            break
        for name in room:
            capped[name] = min(float(most[name]), capped[name] + lacking * shares[name] / weight)
    counts = {name: math.floor(value + 1e-9) for name, value in capped.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - capped[name])
    missing = total - sum(counts.values())
    while missing > 0:
        for name in by_remainder:
            if missing > 0 and counts[name] < most[name]:
                counts[name] += 1
                missing -= 1
    return counts


DISTRIBUTIONS: dict[str, Distribution] = {"uniform": uniform, "erk": erk}
"""Every distribution by its name."""
