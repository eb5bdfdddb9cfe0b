"""Mask patterns: masks of a regular form, as hardware or blocked kernels want them.

A weight counts as a matrix ``[outputs, inputs]``; a convolution's ``[outputs, inputs, height, width]`` has one matrix
per tap in :class:`NOfM`, and rows of ``inputs * height * width`` in :class:`Blocks`.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lth_fast.prune.selection import prune_lowest


@dataclass(frozen=True)
class NOfM:
    """At most ``n`` survivors among every ``m`` inputs in a row, e.g. ``NOfM(2, 4)`` for sparse tensor cores.

    (Mishra et al. 2021, 2104.08378; Zhou et al. 2021, 2102.04010.)
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not _whole(self.n, self.m) or not 0 <= self.n <= self.m or self.m < 1:
            raise ValueError(f"n and m: expected 0 <= n <= m and m >= 1 in whole numbers, got {self.n!r} of {self.m!r}")

    def mask(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Prune the lowest scores of every group until ``n`` survive; ties fall to the lowest index.

        Args:
            scores: ``[outputs, inputs, ...]``, ``inputs`` a multiple of ``m``.
            mask: Survivors so far, bool of the same shape; ``None``: all. The pruned ones stay pruned.

        Returns:
            The new mask.

        Raises:
            ValueError: The shape does not fit, ``mask`` has another one, a survivor's score is NaN, or a tensor is on
                the meta device.
            TypeError: ``mask`` is not bool.
        """
        _check(mask, scores)
        ranked = self._groups(scores.detach())
        survives = torch.ones_like(ranked, dtype=torch.bool) if mask is None else self._groups(mask)
        if bool((ranked.isnan() & survives).any()):
            raise ValueError("scores holds NaN among the survivors; did the training diverge?")
        order = torch.sort(ranked, dim=-1, stable=True).indices
        # The pruned ones come before every survivor, whatever their scores.
        order = order.gather(-1, torch.sort(survives.gather(-1, order).byte(), dim=-1, stable=True).indices)
        kept = survives.scatter(-1, order[..., : self.m - self.n], False)
        return kept.flatten(-2).movedim(-1, 1).contiguous()

    def fits(self, mask: Tensor) -> bool:
        """Whether ``mask``, bool ``[outputs, inputs, ...]``, has this pattern."""
        return bool((self._groups(mask).sum(-1) <= self.n).all())

    def _groups(self, tensor: Tensor) -> Tensor:
        """``[outputs, ..., inputs / m, m]``."""
        if tensor.dim() < 2 or tensor.shape[1] % self.m:
            raise ValueError(
                f"expected a shape [outputs, inputs, ...] with a multiple of {self.m} inputs, got {list(tensor.shape)}"
            )
        return tensor.movedim(1, -1).unflatten(-1, (-1, self.m))


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of ``rows`` outputs by ``columns`` inputs survive or go; those at the borders may be smaller."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not _whole(self.rows, self.columns) or self.rows < 1 or self.columns < 1:
            raise ValueError(
                f"rows and columns: expected sizes >= 1 in whole numbers, got {self.rows!r} and {self.columns!r}"
            )

    def mask(self, scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """Prune exactly ``k`` more blocks, those of the lowest mean score; ties fall to the first in row-major order.

        Args:
            scores: ``[outputs, inputs, ...]``.
            k: Number of blocks, 0 to the number of blocks that survive.
            mask: Survivors so far, bool of the same shape, of this pattern; ``None``: all.

        Returns:
            The new mask.

        Raises:
            ValueError: The shape does not fit, ``mask`` has another shape or pattern, ``k`` is out of range, a score is
                NaN or infinite, or a tensor is on the meta device.
            TypeError: ``mask`` is not bool.
        """
        _check(mask, scores)
        scores = scores.detach()
        if scores.dtype != torch.float64:
            scores = scores.float()  # a sum of half precision would overflow
        if mask is not None and not self.fits(mask):
            raise ValueError(f"mask: expected whole blocks of {self.rows} x {self.columns}, got some in part")
        sizes = self._tiles(torch.ones_like(scores)).sum((1, 3))
        alive = None if mask is None else self._tiles(mask).any(3).any(1)
        (kept,) = prune_lowest([self._tiles(scores).sum((1, 3)) / sizes], k, [alive])
        rows, columns = scores.flatten(1).shape
        wide = kept.repeat_interleave(self.rows, 0)[:rows].repeat_interleave(self.columns, 1)[:, :columns]
        return wide.reshape(scores.shape).contiguous()

    def fits(self, mask: Tensor) -> bool:
        """Whether ``mask``, bool ``[outputs, inputs, ...]``, has this pattern."""
        inside = self._tiles(torch.ones_like(mask))
        tiles = self._tiles(mask)
        return bool((tiles.any(3, True).any(1, True) & inside == tiles).all())

    def _tiles(self, tensor: Tensor) -> Tensor:
        """``[rows of blocks, rows, columns of blocks, columns]``, zero beyond the borders."""
        if tensor.dim() < 2:
            raise ValueError(f"expected a shape [outputs, inputs, ...], got {list(tensor.shape)}")
        matrix = tensor.flatten(1)
        missing = (0, -matrix.shape[1] % self.columns, 0, -matrix.shape[0] % self.rows)
        return pad(matrix, missing).unflatten(1, (-1, self.columns)).unflatten(0, (-1, self.rows))


def _whole(*sizes: object) -> bool:
    return all(isinstance(size, numbers.Integral) for size in sizes)


def _check(mask: Tensor | None, scores: Tensor) -> None:
    for name, tensor in (("scores", scores), ("mask", mask)):
        if tensor is not None and tensor.is_meta:
            raise ValueError(f"{name}: expected a tensor with values, got one on the meta device")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, got {mask.dtype}")
    if mask.shape != scores.shape:
        raise ValueError(f"mask: expected the shape of scores {list(scores.shape)}, got {list(mask.shape)}")
