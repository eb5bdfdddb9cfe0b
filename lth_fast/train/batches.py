"""The training batches of one level, addressed by iteration, so that training can start anywhere in the order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor

EpochSeed = Callable[[int], int]


class Batches(Protocol):
    """An endless, seeded sequence of batches.

    Attributes:
        per_epoch: Batches per epoch; the last one of an epoch may be smaller.
    """

    per_epoch: int

    def start(self, iteration: int) -> None:
        """Make the next batch the one of step ``iteration + 1``."""

    def next(self) -> tuple[Any, Tensor]:
        """The next batch as (inputs, labels) on the training device."""


class ResidentBatches:
    """Batches of a resident loader: one seeded permutation per epoch, gathered from tensors in memory.

    Args:
        loader: A ``ResidentLoader`` on the training device.
        order_seed: Seed of an epoch's permutation, epochs counted from 0.
        noise_seed: Seed of an epoch's augmentation.
    """

    def __init__(self, loader: Any, order_seed: EpochSeed, noise_seed: EpochSeed) -> None:
        self.loader = loader
        self.per_epoch = len(loader)
        self._order_seed = order_seed
        self._noise_seed = noise_seed
        self.start(0)

    def start(self, iteration: int) -> None:
        self._epoch, self._index = divmod(iteration, self.per_epoch)
        self._enter_epoch()

    def next(self) -> tuple[Tensor, Tensor]:
        if self._index == self.per_epoch:
            self._epoch, self._index = self._epoch + 1, 0
            self._enter_epoch()
        indices = self._batches[self._index]
        augment_seed = self._augment_seed + self._index if self.loader.augment else None
        self._index += 1
        return self.loader.batch(indices, augment_seed)

    def _enter_epoch(self) -> None:
        order = self.loader.order(self._order_seed(self._epoch))
        self._batches = order.split(self.loader.batch_size)
        self._augment_seed = self._noise_seed(self._epoch) >> 1  # room to count the batches of an epoch upwards


class LoaderBatches:
    """Batches of any re-iterable data loader, a ``torch.utils.data.DataLoader`` for instance.

    Torch's global generator is seeded at the start of every epoch, so the loader's order (and whatever transforms and
    dropout draw in that epoch) follows from the seed. Starting inside an epoch skips its first batches by drawing them.

    Args:
        loader: Iterable of (inputs, labels) with a length.
        order_seed: Seed of an epoch, epochs counted from 0.
        device: Where the batches are wanted.
    """

    def __init__(self, loader: Any, order_seed: EpochSeed, device: torch.device) -> None:
        if not isinstance(loader, Sized) or not isinstance(loader, Iterable):
            raise TypeError(
                f"data: a loader of (inputs, labels) with a length is expected, got {type(loader).__name__}"
            )
        self.loader: Any = loader
        self.per_epoch = len(loader)
        if self.per_epoch == 0:
            raise ValueError("data: the training loader has no batches")
        self._order_seed = order_seed
        self._device = device
        self._iterator: Iterator[Any] | None = None
        self._epoch = 0
        self._index = 0

    def start(self, iteration: int) -> None:
        self._epoch, self._index = divmod(iteration, self.per_epoch)
        self._enter_epoch()
        for _ in range(self._index):
            next(self._iterator)  # type: ignore[arg-type]

    def next(self) -> tuple[Any, Tensor]:
        if self._iterator is None:
            self._enter_epoch()
        elif self._index == self.per_epoch:
            self._epoch, self._index = self._epoch + 1, 0
            self._enter_epoch()
        inputs, labels = next(self._iterator)  # type: ignore[arg-type]
        self._index += 1
        return inputs.to(self._device), labels.to(self._device)

    def _enter_epoch(self) -> None:
        seed = self._order_seed(self._epoch)
        torch.manual_seed(seed)
        own = getattr(self.loader, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(seed)
        self._iterator = iter(self.loader)
