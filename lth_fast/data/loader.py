"""A whole split of images held in memory as bytes, gathered and normalised by the batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lth_fast.data.augment import apply_draws, draw_flips_and_crops


class ResidentLoader:
    """Iterates over one split, like a ``DataLoader`` without workers and without per-item Python.

    The images stay bytes (MNIST's training set takes 43 MB, CIFAR-10's 138 MB), on the CPU or on an accelerator, and
    become float32 one batch at a time: ``inputs = (images / scale - mean) / std``.

    Attributes:
        images: uint8 ``[N, C, H, W]``, raw pixels in ``0..scale``.
        labels: int64 ``[N]``, in ``0..classes - 1``.
        mean, std: One number per channel, of pixels divided by ``scale``.
        scale: The largest pixel value the format has: 255 for image files, 16 for ``digits``.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        shuffle: Whether an epoch visits the images in a random order.
        augment: Whether training batches are flipped and cropped at random.
        name: The data set, e.g. ``"mnist"``.
        classes: Number of classes.
        pixel_mean, pixel_gain: float32 ``[C, 1, 1]``, the same in other words: ``(images - pixel_mean) * pixel_gain``.

    Raises:
        ValueError: An argument has the wrong shape, dtype or range; the message names it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        name: str,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float = 255.0,
        batch_size: int,
        shuffle: bool = False,
        augment: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0:
            raise ValueError(
                f"images must be uint8 [N, C, H, W] with N >= 1, got {images.dtype} {list(images.shape)} ({name})"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)} ({name})")
        lowest, highest = (int(bound) for bound in labels.aminmax())
        if lowest < 0 or highest >= classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {lowest}..{highest} ({name})")
        channels = images.shape[1]
        if len(mean) != channels or not all(map(math.isfinite, mean)):
            raise ValueError(f"mean must be {channels} finite numbers, one per channel, got {mean} ({name})")
        if len(std) != channels or not all(0 < deviation < math.inf for deviation in std):
            raise ValueError(f"std must be {channels} finite numbers > 0, one per channel, got {std} ({name})")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be finite and > 0, got {scale} ({name})")
        check_batch_size("batch_size", batch_size)
        self.images = images.contiguous()
        self.labels = labels.contiguous()
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.scale = scale
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.name = name
        self.classes = classes
        # Tensors rather than Python numbers: wrapping a number costs more than the arithmetic on a batch of MNIST.
        per_channel = torch.tensor([mean, std], dtype=torch.float64, device=images.device).view(2, channels, 1, 1)
        self.pixel_mean = (per_channel[0] * scale).float()
        self.pixel_gain = (1 / (per_channel[1] * scale)).float()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def dataset(self) -> ResidentDataset:
        """The split image by image, for code that expects a ``DataLoader``."""
        return ResidentDataset(self)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of ``(inputs float32 [B, C, H, W], labels int64 [B])``.

        As with a ``DataLoader``, ``torch.manual_seed`` decides the order and the augmentation. A loader that neither
        shuffles nor augments leaves torch's global generator untouched, so that evaluating does not change training.
        """
        order = self.order(_draw_seed()) if self.shuffle else None
        for start in range(0, len(self.images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            augment_seed = _draw_seed() if self.augment else None
            if order is None:
                images = self.images[batch]
                yield self._inputs(images, self.draws(len(images), augment_seed)), self.labels[batch]
            else:
                yield self.batch(order[batch], augment_seed)

    def order(self, seed: int) -> Tensor:
        """Return the order of one epoch, a permutation int64 ``[N]`` on the loader's device.

        It depends on ``seed`` alone (not on the device or the global generator) and is the identity unless ``shuffle``.
        """
        if not self.shuffle:
            return torch.arange(len(self.images), device=self.images.device)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.images), generator=generator, device="cpu").to(self.images.device)

    def batch(self, indices: Tensor, augment_seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images at ``indices`` as network inputs, and their labels.

        Args:
            indices: int64 ``[B]`` on the loader's device, in ``0..N - 1``.
            augment_seed: Seed of the random flip and crop. They take place when it is given and ``augment`` is set.

        Returns:
            inputs float32 ``[B, C, H, W]`` and labels int64 ``[B]``.
        """
        return self.gather(indices, self.draws(len(indices), augment_seed))

    def gather(self, indices: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`batch` with the randomness of its augmentation given: operations on this device alone.

        Args:
            indices: int64 ``[B]`` on the loader's device.
            draws: int64 ``[B]`` there, from :meth:`draws`; ``None``: no augmentation.
        """
        return self._inputs(self.images.index_select(0, indices), draws), self.labels.index_select(0, indices)

    def draws(self, count: int, augment_seed: int | None) -> Tensor | None:
        """The randomness of the augmentation of a batch of ``count`` images, int64 ``[count]`` on the loader's device.

        ``None`` without a seed, and where the loader does not augment.
        """
        if augment_seed is None or not self.augment:
            return None
        return draw_flips_and_crops(count, augment_seed).to(self.images.device)

    def to(self, device: torch.device | str) -> ResidentLoader:
        """Return this loader with its tensors on ``device``: itself when they are there already."""
        images = self.images.to(device)
        if images is self.images:
            return self
        moved = copy.copy(self)
        moved.images = images
        moved.labels = self.labels.to(device)
        moved.pixel_mean = self.pixel_mean.to(device)
        moved.pixel_gain = self.pixel_gain.to(device)
        return moved

    def __repr__(self) -> str:
        manner = "".join([", shuffled" * self.shuffle, ", augmented" * self.augment])
        return (
            f"{type(self).__name__}({self.name}: {len(self.images)} images {self.input_shape}, "
            f"batches of {self.batch_size}{manner}, on {self.images.device})"
        )

    def _inputs(self, images: Tensor, draws: Tensor | None) -> Tensor:
        if draws is not None:
            images = apply_draws(images, draws)
        # Converting first and working in place: mixed-dtype arithmetic allocates a second batch of floats, which costs
        # more than this whole expression. On the training path of the smallest networks every operation shows.
        return images.to(torch.float32).sub_(self.pixel_mean).mul_(self.pixel_gain)


class ResidentDataset(Dataset[tuple[Tensor, int]]):
    """A :class:`ResidentLoader`'s images one by one: ``[i]`` is ``(float32 [C, H, W] normalised, label)``."""

    def __init__(self, loader: ResidentLoader) -> None:
        self._loader = loader

    @property
    def name(self) -> str:
        """The data set, e.g. ``"mnist"``."""
        return self._loader.name

    def __len__(self) -> int:
        return len(self._loader.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._loader._inputs(self._loader.images[index], None), int(self._loader.labels[index])

    def __str__(self) -> str:
        return self.name


def check_batch_size(argument: str, batch_size: int) -> None:
    """Raise a ValueError that names ``argument`` unless ``batch_size`` is an integer >= 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{argument} must be an integer >= 1, got {batch_size!r}")


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())
