"""From images and labels to the three loaders: training, validation, test."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lth_fast.data.loader import ResidentLoader, check_batch_size


class Labelled(NamedTuple):
    """Images uint8 ``[N, C, H, W]`` and their labels int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def select(self, indices: Tensor) -> Labelled:
        """Return the images and labels at ``indices`` (int64 ``[K]``)."""
        return Labelled(self.images.index_select(0, indices), self.labels.index_select(0, indices))


class DataSplits(NamedTuple):
    """The loaders of one data set. Only ``train`` shuffles and augments; ``validation`` is None if it was 0."""

    train: ResidentLoader
    validation: ResidentLoader | None
    test: ResidentLoader


@dataclass(frozen=True)
class Description:
    """What is known of a data set beside its pixels; the fields are those of :class:`ResidentLoader`."""

    name: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0


def make_splits(
    description: Description,
    train: Labelled,
    test: Labelled,
    *,
    validation: float,
    train_batch_size: int,
    validation_batch_size: int,
    test_batch_size: int,
    augment: bool,
    split_seed: int,
) -> DataSplits:
    """Split a validation set off ``train`` at random and wrap all three in loaders.

    The arguments are described in :func:`lth_fast.data.load`.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """
    check_batch_size("train_batch_size", train_batch_size)
    check_batch_size("validation_batch_size", validation_batch_size)
    check_batch_size("test_batch_size", test_batch_size)

    def loader(part: Labelled, batch_size: int, *, training: bool = False) -> ResidentLoader:
        return ResidentLoader(
            part.images,
            part.labels,
            name=description.name,
            classes=description.classes,
            mean=description.mean,
            std=description.std,
            scale=description.scale,
            batch_size=batch_size,
            shuffle=training,
            augment=training and augment,
        )

    held_out_count = validation_count(validation, len(train.labels))
    held_out = None
    if held_out_count:
        held_out_indices, kept_indices = draw_split(len(train.labels), held_out_count, split_seed)
        held_out, train = train.select(held_out_indices), train.select(kept_indices)
    return DataSplits(
        train=loader(train, train_batch_size, training=True),
        validation=None if held_out is None else loader(held_out, validation_batch_size),
        test=loader(test, test_batch_size),
    )


def validation_count(validation: float, available: int) -> int:
    """Return how many of ``available`` training images ``validation``, a count or a share, means.

    Raises:
        ValueError: It is neither a count in ``0..available - 1`` nor a share in ``(0, 1)`` of at least one image.
    """
    count = -1
    if isinstance(validation, numbers.Integral) and not isinstance(validation, bool):
        count = int(validation)
    elif isinstance(validation, numbers.Real) and 0 < validation < 1:
        count = round(validation * available) or -1
    elif isinstance(validation, float) and validation == 0:
        count = 0
    if not 0 <= count < available:
        raise ValueError(
            f"validation must be a count from 0 to {available - 1} (the training set has {available} images) "
            f"or a share between 0 and 1 that leaves images on both sides, got {validation!r}"
        )
    return count


def draw_split(available: int, held_out: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``held_out`` of the indices ``0..available - 1``; return these and the others, each int64 and ascending.

    Raises:
        ValueError: ``split_seed`` is not an integer in ``0..2**63 - 1``.
    """
    if isinstance(split_seed, bool) or not isinstance(split_seed, int) or not 0 <= split_seed < 2**63:
        raise ValueError(f"split_seed must be an integer from 0 to 2**63 - 1, got {split_seed!r}")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(split_seed), device="cpu")
    return order[:held_out].sort().values, order[held_out:].sort().values
