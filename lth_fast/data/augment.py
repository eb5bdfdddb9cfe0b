"""Random horizontal flip and crop of a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def flip_and_crop(images: Tensor, seed: int, padding: int = 4) -> Tensor:
    """Flip half of the images, chosen at random, left to right and shift each at random within a border of zeros.

    The CIFAR augmentation of He et al. (arXiv 1512.03385, section 4.2): pad ``padding`` pixels on each side, cut a
    window of the original size at a uniformly drawn place, mirror it with probability 1/2. As in the usual torchvision
    pipeline (``RandomCrop(32, padding=4)``, ``RandomHorizontalFlip()``, ``ToTensor()``, ``Normalize()``) the border is
    zero in *raw pixels*, so pass images before normalisation: the border is black, not the mean colour.

    Args:
        images: ``[B, C, H, W]``, any dtype and device.
        seed: Decides everything: the same images and seed give the same result, on every device.
        padding: Width of the border in pixels, >= 0.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    return apply_draws(images, draw_flips_and_crops(len(images), seed, padding).to(images.device), padding)


def draw_flips_and_crops(count: int, seed: int, padding: int = 4) -> Tensor:
    """The randomness of :func:`flip_and_crop` for ``count`` images: int64 ``[count]`` on the CPU.

    One number per image holds its flip and both shifts. They are drawn on the CPU, whose generator is the same
    everywhere.
    """
    shifts = 2 * padding + 1
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2 * shifts * shifts, (count,), generator=generator, device="cpu")


def apply_draws(images: Tensor, draws: Tensor, padding: int = 4) -> Tensor:
    """:func:`flip_and_crop` by ``draws``, int64 ``[B]`` on the images' device: operations on that device alone."""
    batch, channels, height, width = images.shape
    device = images.device
    shifts = 2 * padding + 1
    flip, top, left = draws % 2, draws // 2 // shifts, draws // 2 % shifts

    padded = functional.pad(images, (padding,) * 4)
    rows = top[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, columns.flip(0), columns)

    # Rows are selected whole, as blocks of memory; the pixel-wise gather is left with the columns alone.
    planes = torch.arange(batch * channels, device=device).view(batch, channels, 1)
    row_blocks = (planes * padded.shape[2] + rows[:, None, :]).flatten()
    cropped = padded.flatten(0, 2).index_select(0, row_blocks).view(batch, channels, height, padded.shape[3])
    return cropped.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))
