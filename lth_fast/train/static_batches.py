"""Resident batches as operations between tensors that stay in place: what a CUDA graph can record."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lth_fast.train.batches import ResidentBatches


class StaticBatches:
    """The same batches in the same order as those of one or several :class:`ResidentBatches`, on the device.

    The order of the epoch, the randomness of its augmentation and the place in it lie in tensors that are refilled once
    per epoch; :meth:`take` reads them and launches nothing else.

    Args:
        sources: One per replicate, all of the same loader.
        stacked: Whether batches have a leading axis of replicates; without it there is one source.

    Raises:
        ValueError: ``sources`` have several loaders.
    """

    def __init__(self, sources: Sequence[ResidentBatches], stacked: bool = False) -> None:
        loader = sources[0].loader
        if any(source.loader is not loader for source in sources) or not (stacked or len(sources) == 1):
            raise ValueError(f"sources: expected batches of one and the same loader, got {len(sources)}")
        self.per_epoch = sources[0].per_epoch
        self._sources = list(sources)
        self._stacked = stacked
        self._loader = loader
        self._size, self._count = loader.batch_size, len(loader.images)
        device = loader.images.device
        self._order = torch.zeros(len(sources), self._count, dtype=torch.int64, device=device)
        self._draws = torch.zeros_like(self._order) if loader.augment else None
        self._offsets = torch.arange(min(self._size, self._count), device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self._epoch = self._index = 0

    def start(self, iteration: int) -> None:
        """Make the next batch the one of step ``iteration + 1``."""
        self._epoch, self._index = divmod(iteration, self.per_epoch)
        self._enter_epoch()

    def next_size(self) -> int:
        """Images in the next batch; enters the next epoch where one ends. To be called before every :meth:`take`."""
        if self._index == self.per_epoch:
            self._epoch, self._index = self._epoch + 1, 0
            self._enter_epoch()
        start = self._index * self._size
        self._index += 1
        return min(self._size, self._count - start)

    def take(self, size: int) -> tuple[Tensor, Tensor]:
        """The next batch: inputs ``[size, ...]`` and labels ``[size]``; stacked, both behind an axis of replicates.

        Works on the device alone: recorded once, it takes the batch that is next whenever it is replayed.
        """
        places = self._position + self._offsets[:size]
        indices = self._order.index_select(1, places).flatten()
        draws = None if self._draws is None else self._draws.index_select(1, places).flatten()
        self._position += size
        inputs, labels = self._loader.gather(indices, draws)
        if not self._stacked:
            return inputs, labels
        return inputs.unflatten(0, (-1, size)), labels.unflatten(0, (-1, size))

    def _enter_epoch(self) -> None:
        self._position.fill_(self._index * self._size)
        for replicate, source in enumerate(self._sources):
            self._order[replicate].copy_(source.order(self._epoch))
            draws = source.draws(self._epoch)
            if self._draws is not None and draws is not None:
                self._draws[replicate].copy_(draws)
