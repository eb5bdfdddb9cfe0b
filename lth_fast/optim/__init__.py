"""Optimizers and masks."""

from lth_fast.optim.masks import apply_masks

__all__ = ["apply_masks"]
