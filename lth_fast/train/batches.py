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
        loader: A ``ResidentLoader`` on the training device, or anything with its ``order`` and ``batch``.
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
        indices, _ = self.skip(1)
        augment_seed = self._augment_seed(self._epoch, self._index - 1) if self.loader.augment else None
        return self.loader.batch(indices, augment_seed)

    def skip(self, most: int) -> tuple[Tensor, int]:
        """Pass over the next batches of this epoch, at most so many, for whoever gathers them.

        Returns:
            int64 on the loader's device: the images of those batches, one batch after the other; and how many they are.
        """
        if self._index == self.per_epoch:
            self._epoch, self._index = self._epoch + 1, 0
            self._enter_epoch()
        size, count = self.loader.batch_size, min(most, self.per_epoch - self._index)
        start = self._index * size
        self._index += count
        return self._order[start : start + count * size], count

    def order(self, epoch: int) -> Tensor:
        """int64 ``[N]`` on the loader's device: the images in the order in which ``epoch`` visits them."""
        return self.loader.order(self._order_seed(epoch))

    def draws(self, epoch: int) -> Tensor | None:
        """int64 ``[N]`` there: the randomness of each one's augmentation in that order; ``None``: no augmentation."""
        if not self.loader.augment:
            return None
        size, count = self.loader.batch_size, len(self.loader.images)
        return torch.cat(
            [
                self.loader.draws(min(size, count - index * size), self._augment_seed(epoch, index))
                for index in range(self.per_epoch)
            ]
        )

    def _augment_seed(self, epoch: int, index: int) -> int:
        return (self._noise_seed(epoch) >> 1) + index  # halved: room to count the batches of an epoch upwards

    def _enter_epoch(self) -> None:
        self._order = self.order(self._epoch)


class LoaderBatches:
    """Batches of any re-iterable data loader, a ``torch.utils.data.DataLoader`` for instance.

    Its generators are seeded at the start of every epoch, so the loader's order (and whatever transforms and dropout
    draw in that epoch) follows from the seed. Starting inside an epoch skips its first batches by drawing them.

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
        try:
            self.per_epoch = len(loader)
        except TypeError as error:  # a DataLoader has a length, but not of every data set
            raise TypeError(f"data: expected a training loader with a length, got one without ({error})") from error
        if self.per_epoch == 0:
            raise ValueError("data: the training loader has no batches")
        self._order_seed = order_seed
        self._device = device
        self.start(0)

    def start(self, iteration: int) -> None:
        self._epoch, skipped = divmod(iteration, self.per_epoch)
        self._index = 0
        # The epoch is entered, and its generators seeded, by its first batch: where training goes on between two
        # epochs, the random state of a checkpoint may be put back after this call.
        self._iterator: Iterator[Any] | None = None
        for _ in range(skipped):
            self._draw()

    def next(self) -> tuple[Any, Tensor]:
        if self._index == self.per_epoch:
            self._epoch, self._index, self._iterator = self._epoch + 1, 0, None
        return inputs_and_labels(self._draw(), self._device)

    def _draw(self) -> Any:
        if self._iterator is None:
            seed_loader(self.loader, self._order_seed(self._epoch))
            self._iterator = iter(self.loader)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"data: expected {self.per_epoch} batches in every pass over the training loader, as its length says, "
                f"got {self._index} in epoch {self._epoch + 1}"
            ) from None
        self._index += 1
        return batch


def inputs_and_labels(batch: Any, device: torch.device) -> tuple[Any, Tensor]:
    """The two parts of a ``batch`` of any loader, on ``device``.

    Raises:
        TypeError: It is no batch of (inputs, labels).
    """
    try:
        inputs, labels = batch
        return inputs.to(device), labels.to(device)
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            "data: expected batches of (inputs, labels), tensors or what moves by to(device) as they do, "
            f"got {type(batch).__name__} ({error})"
        ) from error


def seed_loader(loader: Any, seed: int) -> None:
    """Make the next pass over ``loader`` a function of ``seed``.

    Seeds torch's global generator, from which a ``DataLoader`` draws by default, and the generators that were handed to
    the loader or to its samplers. Persistent workers are started anew.
    """
    torch.manual_seed(seed)
    for generator in loader_generators(loader):
        generator.manual_seed(seed)
    if getattr(loader, "persistent_workers", False):
        loader._iterator = None  # torch seeds workers when they start, and only then


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The generators that were handed to ``loader`` or to its samplers."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in (loader, *samplers))
    return [generator for generator in found if isinstance(generator, torch.Generator)]
