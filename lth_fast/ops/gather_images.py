"""A batch of images that lie in memory as bytes, as the numbers a network takes."""

from __future__ import annotations

import torch
from torch import Tensor

from lth_fast.ops.library import serve_cuda


def gather_images(images: Tensor, indices: Tensor, mean: Tensor, gain: Tensor) -> Tensor:
    """Compute ``(images[indices] - mean) * gain`` in one pass.

    Args:
        images: contiguous uint8 ``[N, C, H, W]``.
        indices: int64 ``[B]``, each in ``0..N - 1``.
        mean: float32, one number per channel (``[C]`` or ``[C, 1, 1]``), subtracted from every pixel.
        gain: Likewise, multiplied with what is left.

    Returns:
        float32 ``[B, C, H, W]`` on the device of ``images``. It has no derivative.

    Raises:
        RuntimeError: An argument is not as described; the message names it, what was expected and what was given.
        IndexError: An index is not that of an image.
    """
    return torch.ops.lth_fast.gather_images(images, indices, mean, gain)


def reference(images: Tensor, indices: Tensor, mean: Tensor, gain: Tensor) -> Tensor:
    """Definition of :func:`gather_images`."""
    chosen = images.index_select(0, indices).to(torch.float32)
    return (chosen - mean.view(-1, 1, 1)) * gain.view(-1, 1, 1)


serve_cuda("gather_images", reference)


@torch.library.register_fake("lth_fast::gather_images")
def _(images: Tensor, indices: Tensor, mean: Tensor, gain: Tensor) -> Tensor:
    return images.new_empty((indices.shape[0], *images.shape[1:]), dtype=torch.float32)
