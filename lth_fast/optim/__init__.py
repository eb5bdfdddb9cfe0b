"""Optimizers and masks."""

from lth_fast.optim.dense_state import dense_optimizer_state, load_dense_optimizer_state
from lth_fast.optim.masks import apply_masks

__all__ = ["apply_masks", "dense_optimizer_state", "load_dense_optimizer_state"]
