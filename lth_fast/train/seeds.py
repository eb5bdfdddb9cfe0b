"""Randomness in named streams, so that one choice can be varied while the others stay."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Purpose = Literal["split", "init", "order", "reorder", "mask", "noise"]


@dataclass(frozen=True)
class Seeds:
    """The seed of a run and what overrides it.

    Attributes:
        seed: Any integer.
        init_seed: Replaces ``seed`` for the initial weights; ``None`` keeps it.
        order_seed: Replaces ``seed`` for the order of the training data; ``None`` keeps it.
    """

    seed: int
    init_seed: int | None = None
    order_seed: int | None = None

    def stream(self, purpose: Purpose, replicate: int = 0, level: int = 0, part: int = 0) -> int:
        """The seed of one stream, 0 to 2^63 - 1.

        Streams: ``split`` (training and validation set), ``init`` (weights), ``order`` (training data; one ``part`` per
        epoch), ``reorder`` (the seed of a second copy's order and noise), ``mask`` (random pruning), ``noise``
        (everything drawn inside a step: dropout, augmentation). They are independent of each other; none depends on how
        much another one has drawn.
        """
        override = {"init": self.init_seed, "order": self.order_seed, "reorder": self.order_seed}.get(purpose)
        seed = self.seed if override is None else override
        text = f"{seed}/{purpose}/{replicate}/{level}/{part}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, purpose: Purpose, replicate: int = 0, level: int = 0, part: int = 0) -> torch.Generator:
        """A CPU generator at the start of that stream."""
        return torch.Generator().manual_seed(self.stream(purpose, replicate, level, part))


@contextlib.contextmanager
def own_random_state(device: torch.device, generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Whatever the ``with`` block draws or seeds, torch's global generators are as before when it ends.

    Args:
        device: Where the block computes; the CPU's generator is always among them.
        generators: Further ones that are to be as before.
    """
    states = [(generator, generator.get_state()) for generator in generators]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
