"""Optimizers and masks."""

from .masks import apply_masks

__all__ = ["apply_masks"]
